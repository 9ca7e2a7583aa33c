"""Batches: the same whoever makes them, shared out evenly, resumed anywhere."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tser_cli.base.errors import ConfigError, DataError, TrainingError
from tser_cli.data import loaders
from tser_cli.data.base import Dataset, ImageSource, TensorSource
from tser_cli.data.loaders import (
    Batch,
    Feed,
    Key,
    LocalFeed,
    Share,
    WorkerFeed,
    _next,
    automatic_workers,
    build_eval_loader,
    build_train_loader,
)
from tser_cli.data.transforms import Pipeline, evaluation_pipeline, training_pipeline
from tser_cli.settings.config import AugmentConfig, Config

# Python 3.12 and later warn of any fork beside threads
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
Make = Callable[..., Dataset]
CHEAP = {"augment.crop_padding": 2, "augment.flip": True, "augment.cutout": 4}
COSTLY = CHEAP | {"augment.autoaugment": "cifar10"}
MIXED: dict[str, Any] = {
    "augment.randaugment_ops": 2,
    "augment.random_erasing": 0.5,
    "augment.mixup": 0.5,
    "augment.cutmix": 1.0,
    "augment.mix_probability": 0.8,
    "augment.mix_epochs": 4,
}


def config(**changes: Any) -> Config:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return Config().updated({"training.batch_size": 8, "data.workers": 0} | dotted)


def flat(batches: Iterator[Any]) -> list[torch.Tensor]:
    return [tensor for batch in batches for tensor in batch if tensor is not None]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def indices(batches: Iterator[Any]) -> list[int]:
    return [index for batch in batches for index in batch.indices_N.tolist()]


def test_an_epoch_shows_whole_batches_of_distinct_images(make_dataset: Make) -> None:
    dataset = make_dataset(train=50)
    loader = build_train_loader(dataset, config())
    assert (loader.images, loader.steps_per_epoch) == (50, 6)
    batches = list(loader.epoch(0))
    assert [len(batch.labels_N) for batch in batches] == [8] * 6
    shown = indices(iter(batches))
    assert len(set(shown)) == 48 and shown != sorted(shown)
    for batch in batches:
        assert batch.images_NCHW.shape == (8, 3, 12, 10)
        assert batch.images_NCHW.dtype == torch.float32
        assert torch.equal(batch.labels_N, dataset.train.labels[batch.indices_N])
    few = build_train_loader(make_dataset(train=5), config())  # fewer than a batch make one
    assert few.steps_per_epoch == 1
    assert sorted(indices(few.epoch(0))) == list(range(5))


@pytest.mark.parametrize("augment", [{}, CHEAP, COSTLY, MIXED])
def test_workers_make_no_difference(make_dataset: Make, augment: dict[str, Any]) -> None:
    dataset = make_dataset()
    settings_0 = config().updated(augment)
    in_process = build_train_loader(dataset, settings_0)
    in_workers = build_train_loader(dataset, settings_0.updated({"data.workers": 2}))
    for epoch in (0, 1):
        assert same(flat(in_process.epoch(epoch)), flat(in_workers.epoch(epoch)))


META = torch.device("meta")


def moved(source: ImageSource, device: torch.device) -> ImageSource:
    assert isinstance(source, TensorSource)
    return TensorSource(source.images_MCHW.to(device), source.labels.to(device))


def test_images_in_memory_are_made_on_the_device(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "placed", moved)
    settings_ = config(data__workers=-1, augment__mixup=0.5).updated(CHEAP)
    # two batches at a time
    monkeypatch.setattr(loaders, "BLOCK", 16 * 3 * 12 * 10)
    here = build_train_loader(make_dataset(), settings_)
    there = build_train_loader(make_dataset(), settings_, device=META)
    for batch, other in zip(here.epoch(0), there.epoch(0), strict=True):
        assert {tensor.device.type for tensor in batch if tensor is not None} == {"cpu"}
        assert {tensor.device for tensor in other if tensor is not None} == {META}
        assert [tensor.shape for tensor in flat(iter([other]))] == [
            tensor.shape for tensor in flat(iter([batch]))
        ]


@pytest.mark.parametrize(
    ("changes", "feed"),
    [
        ({}, LocalFeed),
        (COSTLY, LocalFeed),
        (COSTLY | {"data.workers": 0}, LocalFeed),
        (CHEAP | {"data.workers": 1}, WorkerFeed),
        ({"augment.random_resized_crop": True}, WorkerFeed),
    ],
)
def test_images_in_memory_need_no_workers(
    make_dataset: Make, changes: dict[str, Any], feed: type
) -> None:
    settings_ = config(data__workers=-1).updated(changes)
    loader = build_train_loader(make_dataset(), settings_)
    assert isinstance(loader._feed, feed)


@pytest.mark.parametrize(
    "changes",
    [
        {"data.workers": 0},
        {"augment.random_resized_crop": True},
        {"augment.autoaugment": "cifar10"},
        {"augment.randaugment_ops": 1},
        {"augment.random_erasing": 0.1},
        {"performance.data_on_device": False},
    ],
)
def test_images_stay_on_the_cpu_where_the_settings_say_so(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(loaders, "placed", moved)
    settings_ = config(data__workers=-1).updated(CHEAP | changes)
    loader = build_train_loader(make_dataset(), settings_, device=META)
    assert next(loader.epoch(0)).images_NCHW.device.type == "cpu"


@pytest.mark.parametrize(("workers", "augment"), [(0, COSTLY), (2, COSTLY), (0, MIXED), (2, MIXED)])
def test_a_resumed_epoch_goes_on_as_the_whole_one(
    make_dataset: Make, workers: int, augment: dict[str, Any]
) -> None:
    dataset = make_dataset()
    settings_ = config(data__workers=workers).updated(augment)
    whole = list(build_train_loader(dataset, settings_).epoch(3))
    resumed = build_train_loader(dataset, settings_)
    for start in (4, 0, 6, 2):
        assert same(flat(resumed.epoch(3, start)), flat(iter(whole[start:])))


@pytest.mark.parametrize(("world", "augment"), [(2, COSTLY), (3, COSTLY), (2, MIXED), (3, MIXED)])
def test_ranks_share_each_global_batch(
    make_dataset: Make, world: int, augment: dict[str, Any]
) -> None:
    dataset = make_dataset()
    settings_ = config().updated(augment)
    whole = build_train_loader(dataset, settings_).epoch(1, 2)
    ranks = [
        build_train_loader(dataset, settings_, rank=rank, world=world).epoch(1, 2)
        for rank in range(world)
    ]
    for batch, *parts in zip(whole, *ranks, strict=True):
        for field, *shares in zip(*(flat(iter([of])) for of in (batch, *parts)), strict=True):
            assert torch.equal(field, torch.cat(shares))


def test_images_are_mixed_with_the_one_before_them_in_the_batch(make_dataset: Make) -> None:
    """Pixels and labels by hand, and both kinds are met."""
    dataset, kinds = make_dataset(), set()
    plain = build_train_loader(dataset, config())
    changes = {"augment.mixup": 0.5, "augment.cutmix": 1.0, "augment.mix_epochs": 2}
    for epoch in (0, 1):
        loader = build_train_loader(dataset, config().updated(changes))
        assert not loader.deterministic_train
        for before, batch in zip(plain.epoch(epoch), loader.epoch(epoch), strict=True):
            images, other = before.images_NCHW, before.images_NCHW.roll(1, 0)
            assert batch.targets_NK is not None
            assert torch.equal(batch.indices_N, before.indices_N)
            one_hot = torch.eye(dataset.spec.num_classes)
            own, others = one_hot[before.labels_N], one_hot[before.labels_N.roll(1)]
            differ = int((before.labels_N != before.labels_N.roll(1)).nonzero()[0, 0])
            share = float(batch.targets_NK[differ, before.labels_N[differ]])
            expected = share * own + (1 - share) * others
            torch.testing.assert_close(batch.targets_NK, expected)
            assert torch.equal(batch.labels_N, batch.targets_NK.argmax(1))
            kept = (batch.images_NCHW == images) | (images == other)
            if bool((kept | (batch.images_NCHW == other)).all()):
                kinds.add("cutmix")
                box_NHW = ~kept.all(1)
                areas = box_NHW.float().mean((1, 2)).tolist()
                assert areas == pytest.approx([1 - share] * len(images))
            else:
                kinds.add("mixup")
                mixed = share * images + (1 - share) * other
                torch.testing.assert_close(batch.images_NCHW, mixed)
    assert kinds == {"mixup", "cutmix"}
    # the third epoch is not mixed any more, and nor is a batch that chance leaves out
    assert same(flat(loader.epoch(2)), flat(plain.epoch(2)))
    rarely = config().updated({"augment.mixup": 1.0, "augment.mix_probability": 1e-6})
    assert same(flat(build_train_loader(dataset, rarely).epoch(0)), flat(plain.epoch(0)))


@settings(max_examples=50, deadline=None)
@given(images=st.integers(1, 60), size=st.integers(1, 20), world=st.integers(1, 9))
def test_shares_are_disjoint_whole_and_even(images: int, size: int, world: int) -> None:
    all_indices = torch.arange(images) * 3
    for batch in range(-(-images // size)):
        parts = [Share(size, rank, world).of(all_indices, batch) for rank in range(world)]
        union = [index for part in parts for index in part]
        assert union == all_indices[batch * size : (batch + 1) * size].tolist()
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("world", "batch_size"), [(1, 101), (2, 1), (3, 50), (3, 1000)])
def test_every_test_image_counts_once(make_dataset: Make, world: int, batch_size: int) -> None:
    dataset = make_dataset(test=101)
    seen: list[int] = []
    settings_ = config(training__eval_batch_size=batch_size)
    for rank in range(world):
        loader = build_eval_loader(dataset, "test", settings_, rank=rank, world=world)
        assert loader.images == 101
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(0 < len(batch.labels_N) <= -(-batch_size // world) for batch in batches)
        seen += indices(iter(batches))
    assert sorted(seen) == list(range(101))


def test_evaluation_is_in_order_and_repeatable(make_dataset: Make) -> None:
    loader = build_eval_loader(make_dataset(), "test", config().updated(COSTLY))
    first = list(loader)
    assert indices(iter(first)) == list(range(101))
    assert len(first[0].labels_N) == 8
    assert same(flat(iter(first)), flat(iter(loader)))


def test_validation_is_a_part_of_the_training_images(make_dataset: Make) -> None:
    dataset = make_dataset(train=48)
    seeds = [config(data__validation_fraction=0.25, training__seed=seed) for seed in (0, 1)]
    held = []
    for settings_ in seeds:
        validation = build_eval_loader(dataset, "validation", settings_)
        assert validation.images == 12
        held.append(indices(iter(validation)))
    assert held[0] == held[1]
    loader = build_train_loader(dataset, seeds[0])
    assert loader.images == 36
    shown = {index for epoch in range(4) for index in indices(loader.epoch(epoch))}
    assert shown == set(range(48)) - set(held[0])
    train = build_eval_loader(dataset, "train", seeds[0])
    assert indices(iter(train)) == sorted(shown)


def test_what_can_t_be_built_is_named(make_dataset: Make) -> None:
    dataset = make_dataset()
    with pytest.raises(ConfigError, match="a batch of 8 images can't be shared by 9 processes"):
        build_train_loader(dataset, config(), rank=0, world=9)
    with pytest.raises(DataError, match="does not split the training images"):
        build_train_loader(dataset, config(data__validation_fraction=0.99))
    with pytest.raises(DataError, match=r"set data\.validation_fraction"):
        build_eval_loader(dataset, "validation", config())


def test_deterministic_training_is_told(make_dataset: Make) -> None:
    dataset = make_dataset()
    assert build_train_loader(dataset, config()).deterministic_train
    resized = {"random_resized_crop": True}
    for change in (
        {"flip": True},
        {"cutout": 1},
        {"autoaugment": "cifar10"},
        {"mixup": 0.1},
        resized,
    ):
        changed = config(**{f"augment__{key}": value for key, value in change.items()})
        assert not build_train_loader(dataset, changed).deterministic_train


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_are_left_alone(make_dataset: Make, workers: int) -> None:
    dataset, settings_ = make_dataset(), config(data__workers=workers).updated(MIXED)
    train, test = (
        build_train_loader(dataset, settings_),
        build_eval_loader(dataset, "test", settings_),
    )
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    list(train.epoch(0))
    list(train.epoch(1, 3))
    list(test)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), repr(np.random.get_state()))


@pytest.fixture(autouse=True)
def no_loader_left() -> Iterator[None]:
    """Ends a test's workers with it: a loader that is collected later waits 10 s for each."""
    yield
    # torch's handler would report the deaths as errors
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
    gc.collect()
    signal.signal(signal.SIGCHLD, handler)


def made_by(pipeline: Pipeline, workers: int) -> Feed:
    if workers:
        return WorkerFeed(pipeline, workers=workers, pin=False, persistent=True)
    return LocalFeed(pipeline, pin=False)


def training(dataset: Dataset) -> Pipeline:
    augment = AugmentConfig(crop_padding=2, flip=True, autoaugment="cifar10", cutout=3)
    return training_pipeline(dataset.train, dataset.spec, augment, seed=0)


def feed(dataset: Dataset, workers: int) -> Feed:
    return made_by(training(dataset), workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_and_indices_go_with_the_images(make_dataset: Make, workers: int) -> None:
    dataset = make_dataset()
    pipeline = evaluation_pipeline(dataset.test, dataset.spec)
    (batch,) = made_by(pipeline, workers).batches([Key(0, [9, 4, 6])])
    assert batch.indices_N.tolist() == [9, 4, 6]
    assert batch.labels_N.tolist() == [1, 0, 2]
    assert torch.equal(batch.images_NCHW, pipeline(0, [9, 4, 6]))


KEYS = [
    Key(0, [1, 2, 3]),
    Key(0, [4]),
    Key(0, [5, 6]),
    Key(1, [1, 2]),
    Key(1, [3]),
    Key(2, [7, 7, 8, 9]),
]


@pytest.mark.parametrize("ahead", [1, 3, 4, 5, 6, 100])
def test_making_batches_ahead_makes_the_same(make_dataset: Make, ahead: int) -> None:
    pipeline = training(make_dataset())
    expected = flat(LocalFeed(pipeline, pin=False).batches(KEYS))
    found = flat(LocalFeed(pipeline, pin=False, ahead=ahead).batches(KEYS))
    assert len(found) == len(expected) == 3 * len(KEYS)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("ahead", "sizes"),
    [(1, [3, 1, 2, 2, 1, 4]), (4, [4, 2, 3, 4]), (5, [4, 2, 3, 4]), (6, [6, 3, 4])],
)
def test_no_more_is_made_ahead_than_asked_for(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch, ahead: int, sizes: list[int]
) -> None:
    made = []
    make = Pipeline.__call__

    def noted(pipeline: Pipeline, epoch: int, indices: Sequence[int]) -> torch.Tensor:
        made.append(len(indices))
        return make(pipeline, epoch, indices)

    monkeypatch.setattr(Pipeline, "__call__", noted)
    batches = LocalFeed(training(make_dataset()), pin=False, ahead=ahead).batches(KEYS)
    next(batches)
    assert made == sizes[:1]
    list(batches)
    assert made == sizes


def test_an_abandoned_iteration_leaves_nothing_behind(make_dataset: Make) -> None:
    dataset = make_dataset()
    keys = [Key(0, [step]) for step in range(20)]
    expected = [
        pair for step in (3, 5) for pair in flat(feed(dataset, 0).batches([Key(1, [step])]))
    ]
    workers = feed(dataset, 2)
    next(workers.batches(keys))
    found = flat(workers.batches([Key(1, [3]), Key(1, [5])]))
    assert all(map(torch.equal, found, expected)) and len(found) == len(expected)
    assert flat(workers.batches([])) == []


def test_only_the_latest_iteration_may_be_read(make_dataset: Make) -> None:
    one = feed(make_dataset(), 1)
    older, newer = one.batches([Key(0, [1])] * 3), one.batches([Key(0, [2])] * 3)
    next(older)
    next(newer)
    with pytest.raises(AssertionError):
        next(older)


@dataclass(frozen=True)
class Broken:
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        if index == 2:
            raise DataError("the third image is broken")
        return torch.zeros(3, 12, 10, dtype=torch.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_error_keeps_its_message(make_dataset: Make, workers: int) -> None:
    source = Broken(torch.zeros(4, dtype=torch.int64))
    pipeline = Pipeline(source, make_dataset().spec, AugmentConfig(flip=True), seed=0)
    batches = made_by(pipeline, workers).batches([Key(0, [0, 1]), Key(0, [2, 3])])
    next(batches)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == "the third image is broken"


def test_an_evaluation_that_stops_half_way_ends_its_workers(make_dataset: Make) -> None:
    dataset = make_dataset()
    before = set(multiprocessing.active_children())
    pipeline = evaluation_pipeline(dataset.test, dataset.spec)
    batches = WorkerFeed(pipeline, workers=1, pin=False, persistent=False).batches(
        [Key(0, [1])] * 9
    )
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 1
    batches.close()
    assert set(multiprocessing.active_children()) <= before


def test_workers_leave_stopping_to_the_main_process(make_dataset: Make) -> None:
    dataset = make_dataset()
    before = set(multiprocessing.active_children())
    keys = [Key(0, [step, step + 1]) for step in range(30)]
    batches = feed(dataset, 2).batches(keys)
    found = flat(iter([next(batches)]))
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT):
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, number)
    found += flat(batches)
    assert all(map(torch.equal, found, flat(feed(dataset, 0).batches(keys))))


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("DataLoader worker (pid(s) 123) exited unexpectedly", TrainingError),
        ("Caught RuntimeError in DataLoader worker process 0.", RuntimeError),
    ],
)
def test_a_lost_worker_is_told_and_other_errors_pass(said: str, error: type[Exception]) -> None:
    def failing() -> Iterator[Batch]:
        raise RuntimeError(said)
        yield

    with pytest.raises(error, match=re.escape(said[:20])):
        _next(failing())


SCRIPT = """
import multiprocessing, os, signal
import torch
from tser_cli.settings.config import Config
from tser_cli.data.base import Dataset, DataSpec, TensorSource
from tser_cli.data.loaders import build_train_loader
source = TensorSource(torch.zeros(400, 1, 8, 8, dtype=torch.uint8), torch.zeros(400).long())
dataset = Dataset(DataSpec("toy", 1, 8, 8, ("a",), (0.0,), (1.0,)), source, source)
config = Config().updated({"training.batch_size": 4, "data.workers": 2})
batches = build_train_loader(dataset, config).epoch(0)
next(batches)
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
"""


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),  # with an epoch half read
        pytest.param("raise SystemExit(143)", 143, marks=pytest.mark.slow),
        pytest.param("", 0, marks=pytest.mark.slow),
        pytest.param("os._exit(9)", 9, marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_the_process(end: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT + end], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    # the signal of the parent's death takes a moment, on a busy machine a longer one
    while any(map(is_running, pids)):
        time.sleep(0.05)


def test_automatic_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert automatic_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert automatic_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert automatic_workers() == 1
