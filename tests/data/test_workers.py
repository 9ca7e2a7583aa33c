from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tser_cli.base.errors import DataError, TrainingError
from tser_cli.data.base import Dataset
from tser_cli.data.loaders import Batch, Feed, LocalFeed, WorkerFeed, _next, automatic_workers
from tser_cli.data.transforms import Pipeline, evaluation_pipeline, training_pipeline
from tser_cli.settings.config import AugmentConfig

# Python 3.12 and later warn of any fork beside threads
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

Make = Callable[..., Dataset]


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


def flat(batches: Iterator[Batch]) -> list[torch.Tensor]:
    return [tensor for batch in batches for tensor in batch]


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_and_indices_go_with_the_images(make_dataset: Make, workers: int) -> None:
    dataset = make_dataset()
    pipeline = evaluation_pipeline(dataset.test, dataset.spec)
    (batch,) = made_by(pipeline, workers).batches([(0, [9, 4, 6])])
    assert batch.indices_N.tolist() == [9, 4, 6]
    assert batch.labels_N.tolist() == [1, 0, 2]
    assert torch.equal(batch.images_NCHW, pipeline(0, [9, 4, 6]))


KEYS = [(0, [1, 2, 3]), (0, [4]), (0, [5, 6]), (1, [1, 2]), (1, [3]), (2, [7, 7, 8, 9])]


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
    keys = [(0, [step]) for step in range(20)]
    expected = [pair for step in (3, 5) for pair in flat(feed(dataset, 0).batches([(1, [step])]))]
    workers = feed(dataset, 2)
    next(workers.batches(keys))
    found = flat(workers.batches([(1, [3]), (1, [5])]))
    assert all(map(torch.equal, found, expected)) and len(found) == len(expected)
    assert flat(workers.batches([])) == []


def test_only_the_latest_iteration_may_be_read(make_dataset: Make) -> None:
    one = feed(make_dataset(), 1)
    older, newer = one.batches([(0, [1])] * 3), one.batches([(0, [2])] * 3)
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
    batches = made_by(pipeline, workers).batches([(0, [0, 1]), (0, [2, 3])])
    next(batches)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == "the third image is broken"


def test_an_evaluation_that_stops_half_way_ends_its_workers(make_dataset: Make) -> None:
    dataset = make_dataset()
    before = set(multiprocessing.active_children())
    pipeline = evaluation_pipeline(dataset.test, dataset.spec)
    batches = WorkerFeed(pipeline, workers=1, pin=False, persistent=False).batches([(0, [1])] * 9)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 1
    batches.close()
    assert set(multiprocessing.active_children()) <= before


def test_workers_leave_stopping_to_the_main_process(make_dataset: Make) -> None:
    dataset = make_dataset()
    before = set(multiprocessing.active_children())
    keys = [(0, [step, step + 1]) for step in range(30)]
    batches = feed(dataset, 2).batches(keys)
    found = list(next(batches))
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT):
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, number)
    found += flat(batches)
    assert all(map(torch.equal, found, flat(feed(dataset, 0).batches(keys))))


def test_a_lost_worker_is_told() -> None:
    def lost() -> Iterator[Batch]:
        raise RuntimeError("DataLoader worker (pid(s) 123) exited unexpectedly")
        yield

    with pytest.raises(TrainingError, match=re.escape("DataLoader worker (pid(s) 123)")):
        _next(lost())


def test_other_errors_pass() -> None:
    def failing() -> Iterator[Batch]:
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.")
        yield

    with pytest.raises(RuntimeError, match="Caught"):
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
        ("", 0),  # with an epoch half read
        ("raise SystemExit(143)", 143),
        ("os._exit(9)", 9),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_workers_end_with_the_process(end: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + end], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (code, "")
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    # the signal of the parent's death may take a moment
    for _ in range(100):
        if not any(map(is_running, pids)):
            break
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_automatic_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert automatic_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert automatic_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert automatic_workers() == 1
