"""Transforms against plain computation, and draws that depend on nothing but their key."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tser_cli.base.errors import ConfigError
from tser_cli.data.base import Dataset, TensorSource
from tser_cli.data.loaders import Key, LocalFeed
from tser_cli.data.transforms import (
    CPU,
    Draw,
    check_augmentation,
    crop_flip,
    cutout_,
    device_of,
    image_seed,
    is_costly,
    isolated,
    normalise,
    permutation,
    placed,
    sent,
    table,
    training_pipeline,
)
from tser_cli.settings.config import AugmentConfig

Make = Callable[..., Dataset]


def random_images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_normalise_by_hand() -> None:
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    result = normalise(images, (0.5, 0.2), (0.25, 0.1))
    expected = torch.tensor([[[[-2.0, 2.0]], [[0.0, 2.0]]]])
    torch.testing.assert_close(result, expected)
    assert images.tolist() == [[[[0, 255]], [[51, 102]]]]


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    padding=st.integers(0, 2),
    data=st.data(),
)
def test_crop_and_flip_equal_the_plain_computation(
    count: int, channels: int, height: int, width: int, padding: int, data: st.DataObject
) -> None:
    images = random_images(count, channels, height, width)
    offset = st.integers(0, 2 * padding)
    tops, lefts, flips = (
        data.draw(st.lists(values, min_size=count, max_size=count))
        for values in (offset, offset, st.booleans())
    )
    expected = []
    for image, top, left, flip in zip(images, tops, lefts, flips, strict=True):
        padded = functional.pad(image, [padding] * 4)
        cropped = padded[:, top : top + height, left : left + width]
        expected.append(cropped.flip(-1) if flip else cropped)
    offsets = torch.tensor([tops, lefts]).T
    result = crop_flip(images, offsets, torch.tensor(flips), padding)
    assert torch.equal(result, torch.stack(expected))


def test_cutout_equals_torchvisions_erase() -> None:
    from torchvision.transforms.v2 import functional as v2

    images = torch.rand(3, 2, 9, 7, generator=torch.Generator().manual_seed(0)) + 1
    corners = [(0, 0), (4, 2), (5, 3)]
    expected = torch.stack(
        [
            v2.erase(image, i=top, j=left, h=4, w=4, v=torch.zeros(1, 1, 1))
            for image, (top, left) in zip(images, corners, strict=True)
        ]
    )
    result = cutout_(images.clone(), torch.tensor(corners), 4)
    assert torch.equal(result, expected)
    assert (result == 0).sum() == 3 * 2 * 16


def test_training_shows_a_crop_flip_and_square_of_each_image(make_dataset: Make) -> None:
    dataset = make_dataset()
    augment = AugmentConfig(crop_padding=2, flip=True, cutout=5)
    pipeline = training_pipeline(dataset.train, dataset.spec, augment, seed=3)
    tops, lefts, flips = torch.cartesian_prod(*map(torch.arange, (5, 5, 2))).T
    seen = set()
    for index, image in enumerate(pipeline(7, range(50))):
        copies = dataset.train.image(index).expand(50, -1, -1, -1)
        cropped = crop_flip(copies, torch.stack([tops, lefts], 1), flips.bool(), 2)
        candidates = normalise(cropped, dataset.spec.mean, dataset.spec.std)
        hole = (image == 0).all(dim=0)
        assert hole.sum() == 25
        rows, columns = hole.any(dim=1).nonzero(), hole.any(dim=0).nonzero()
        assert rows.max() - rows.min() == columns.max() - columns.min() == 4
        (match,) = (candidates[..., ~hole] == image[:, ~hole]).flatten(1).all(1).nonzero().tolist()
        seen.add(match[0])
    assert len(seen) > 20


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(crop_padding=2, flip=True, cutout=4),
        AugmentConfig(crop_padding=2, flip=True, autoaugment="cifar10", cutout=3),
        AugmentConfig(random_resized_crop=True, flip=True, autoaugment="cifar10", cutout=3),
        AugmentConfig(randaugment_ops=2, randaugment_magnitude=20, random_erasing=0.7),
    ],
)
def test_an_image_depends_on_seed_epoch_and_index_alone(
    make_dataset: Make, augment: AugmentConfig
) -> None:
    dataset = make_dataset()
    pipeline = training_pipeline(dataset.train, dataset.spec, augment, seed=1)
    torch.manual_seed(0)
    together = pipeline(2, range(50))
    torch.manual_seed(1)
    pipeline(3, range(5))
    one_by_one = torch.cat([pipeline(2, [index]) for index in reversed(range(50))])
    assert torch.equal(together, one_by_one.flip(0))
    assert not torch.equal(together, pipeline(3, range(50)))
    other_seed = training_pipeline(dataset.train, dataset.spec, augment, seed=2)
    assert not torch.equal(together, other_seed(2, range(50)))


@settings(
    max_examples=20,
    deadline=None,
    # it makes a new data set at each call
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(channels=st.sampled_from([1, 3]), threads=st.integers(1, 3), data=st.data())
def test_an_image_depends_neither_on_its_batch_nor_on_threads(
    make_dataset: Make, channels: int, threads: int, data: st.DataObject
) -> None:
    dataset = make_dataset(channels=channels)
    augment = AugmentConfig(crop_padding=2, flip=True, autoaugment="cifar10", cutout=3)
    pipeline = training_pipeline(dataset.train, dataset.spec, augment, seed=4)
    order = data.draw(st.permutations(range(50)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 49))))
    parts = [order[start:end] for start, end in pairwise([0, *cuts, 50])]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    split = torch.cat([pipeline(1, part) for part in parts])
    torch.set_num_threads(before)
    assert torch.equal(split, pipeline(1, range(50))[list(order)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["autoaugment", "randaugment"])
def test_policies_are_torchvisions_between_flip_and_cutout(
    make_dataset: Make, name: str, channels: int
) -> None:
    from torchvision.transforms import v2

    dataset = make_dataset(channels=channels)
    before: dict[str, Any] = {"crop_padding": 2, "flip": True}
    policy: dict[str, Any] = {"autoaugment": "cifar10"}
    theirs, expected = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), []
    if name == "randaugment":
        policy = {"randaugment_ops": 3, "randaugment_magnitude": 30}
        theirs = v2.RandAugment(num_ops=3, magnitude=30)
    pipelines = [
        training_pipeline(dataset.train, dataset.spec, AugmentConfig(**before, **more), seed=3)
        for more in ({}, policy, {**policy, "cutout": 4})
    ]
    plain, changed, cut = (pipeline(5, range(50)) for pipeline in pipelines)
    # levels of grey again: the inverse of normalise
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (dataset.spec.mean, dataset.spec.std))
    levels = ((plain * std + mean) * 255).round().to(torch.uint8)
    for index, image in enumerate(levels):
        with isolated():
            torch.manual_seed(image_seed(Draw.POLICY, 3, 5, index))
            expected.append(theirs(image))
    made = normalise(torch.stack(expected), dataset.spec.mean, dataset.spec.std)
    assert torch.equal(changed, made) and not torch.equal(changed, plain)
    assert torch.equal(cut[cut != 0], made[cut != 0])
    assert ((cut == 0).all(dim=1).flatten(1).sum(dim=1) >= 16).all()


def test_a_part_of_the_images_loses_a_rectangle_of_what_the_network_sees(
    make_dataset: Make,
) -> None:
    dataset = make_dataset()
    plain, erased = (
        training_pipeline(dataset.train, dataset.spec, AugmentConfig(**more), seed=3)(1, range(50))
        for more in ({}, {"random_erasing": 0.5})
    )
    changed = (erased != plain).any(1)
    for image, hole in zip(erased, changed, strict=True):
        rows, columns = hole.any(dim=1).nonzero(), hole.any(dim=0).nonzero()
        if len(rows):  # a rectangle of zeros, of at most a third of the image and some rounding
            found = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert bool((found == 0).all()) and found[0].numel() <= 0.45 * hole.numel()
    assert 15 <= int(changed.flatten(1).any(1).sum()) <= 35


def test_the_steps_of_a_sample_are_mixed_alike(make_dataset: Make) -> None:
    dataset = make_dataset()
    augment = AugmentConfig(mixup=1.0, cutmix=1.0)
    pipeline = training_pipeline(dataset.train, dataset.spec, augment, seed=0)
    image_NCHW, labels_N = torch.randn(4, 3, 12, 10), torch.arange(4) % dataset.spec.num_classes
    steps_NTCHW = torch.stack([image_NCHW] * 2, dim=1)
    for step in range(4):
        alone, shares = pipeline.mixed(1, step, image_NCHW, labels_N)
        found, again = pipeline.mixed(1, step, steps_NTCHW, labels_N)
        assert torch.equal(found, torch.stack([alone] * 2, dim=1)) and torch.equal(again, shares)


def test_random_resized_crop_replaces_the_padded_crop(make_dataset: Make) -> None:
    dataset, shown = make_dataset(), []
    for padding in (3, 0):
        augment = AugmentConfig(random_resized_crop=True, crop_padding=padding)
        shown.append(training_pipeline(dataset.train, dataset.spec, augment, seed=0)(0, range(10)))
    assert torch.equal(*shown)


@pytest.mark.parametrize("key", ["cutout", "crop_padding"])
def test_sizes_that_hide_the_whole_image_are_refused(make_dataset: Make, key: str) -> None:
    spec = make_dataset().spec
    check_augmentation(AugmentConfig(**{key: 9}), spec)
    with pytest.raises(ConfigError, match=f"augment.{key} = 10 .* set it below 10"):
        check_augmentation(AugmentConfig(**{key: 10}), spec)


def test_workers_pay_where_training_would_wait(make_dataset: Make) -> None:
    cpu, gpu, meta = map(torch.device, ("cpu", "cuda", "meta"))
    here = make_dataset().train
    elsewhere = TensorSource(here.images_MCHW.to("meta"), here.labels)
    none = AugmentConfig(crop_padding=2, flip=True)
    automatic = AugmentConfig(crop_padding=2, flip=True, autoaugment="cifar10", cutout=3)
    for source, augment, device, answer in (
        (here, none, cpu, False),
        (here, none, gpu, False),
        (here, automatic, cpu, False),
        (here, automatic, gpu, True),
        (here, AugmentConfig(random_erasing=0.25), gpu, True),
        (elsewhere, automatic, meta, False),
        (here, AugmentConfig(random_resized_crop=True), cpu, True),
        (Files(), none, cpu, True),
        (Files(), automatic, cpu, True),
    ):
        assert is_costly(source, augment, device) is answer


class Files:
    """A source that reads its images one by one."""

    labels = torch.zeros(2, dtype=torch.int64)

    def __len__(self) -> int:
        return 2

    def image(self, index: int) -> torch.Tensor:
        raise NotImplementedError


CUDA = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_images_that_do_not_fit_stay_where_they_are(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_dataset(train=50).train
    # 50 images of 3 x 12 x 10 bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * 18_000 - 1, 10**9))
    assert placed(source, CUDA) is source
    moves: list[torch.device] = []

    def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        moves.append(device)
        return tensor

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * 18_000, 10**9))
    monkeypatch.setattr(torch.Tensor, "to", move)
    copy = placed(source, CUDA)
    assert isinstance(copy, TensorSource) and copy is not source
    assert moves == [CUDA, CUDA]


def test_images_move_to_cuda_alone_and_files_stay_files(make_dataset: Make) -> None:
    source, file = make_dataset().train, Files()
    for device in ("cpu", "mps", "xpu"):
        assert placed(source, torch.device(device)) is source
    assert placed(file, CUDA) is file
    assert device_of(file) == CPU


def test_what_is_sent_arrives() -> None:
    tensor = torch.arange(5)
    assert torch.equal(sent(tensor, CPU), tensor)
    assert sent(tensor, torch.device("meta")).device.type == "meta"


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on tensors of several devices: the meta device itself lets some pass."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # one number may come from anywhere
        assert len({tensor.device for tensor in tensors if tensor.ndim}) < 2, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [1, 3])
def test_all_that_meets_the_images_is_on_their_device(make_dataset: Make, channels: int) -> None:
    dataset = make_dataset()
    spec = make_dataset(channels=channels).spec
    meta = torch.device("meta")
    source = TensorSource(
        torch.zeros(50, channels, 12, 10, dtype=torch.uint8, device=meta),
        dataset.train.labels.to(meta),
    )
    augment = AugmentConfig(crop_padding=2, flip=True, cutout=4)
    pipeline = training_pipeline(source, spec, augment, seed=0)
    assert device_of(source) == meta
    with OneDevice():  # type: ignore[no-untyped-call]
        (batch,) = LocalFeed(pipeline, pin=False).batches([Key(0, list(range(50)) * 4)])
    assert {tensor.device for tensor in batch[:3]} == {meta} and batch.targets_NK is None
    assert batch.images_NCHW.shape == (200, channels, 12, 10)
    assert batch.labels_N.shape == batch.indices_N.shape == (200,)


@needs_gpu
def test_a_gpus_images_depend_on_seed_epoch_and_index_alone(make_dataset: Make) -> None:
    dataset = make_dataset()
    augment = AugmentConfig(crop_padding=2, flip=True, cutout=4)
    there = training_pipeline(placed(dataset.train, CUDA), dataset.spec, augment, seed=0)
    together = there(1, range(50))
    assert together.device.type == "cuda"
    one_by_one = torch.cat([there(1, [index]) for index in range(50)])
    assert torch.equal(together, one_by_one)
    here = training_pipeline(dataset.train, dataset.spec, augment, seed=0)(1, range(50))
    torch.testing.assert_close(together.cpu(), here, atol=1e-5, rtol=0)


def test_permutation_is_a_function_of_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): tuple(permutation(seed, epoch, 30).tolist())
        for seed, epoch in product(range(4), repeat=2)
    }
    assert all(sorted(order) == list(range(30)) for order in orders.values())
    assert len(set(orders.values())) == 16
    assert orders[2, 3] == tuple(permutation(2, 3, 30).tolist())


def test_seeds_differ_between_images_epochs_seeds_and_draws() -> None:
    draws = (Draw.RESIZE, Draw.POLICY, Draw.MIX)
    seeds = {image_seed(*key) for key in product(draws, range(5), range(5), range(20))}
    assert len(seeds) == 3 * 5 * 5 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed(Draw.RESIZE, 2**32 - 1, 10**9, 10**9) >= 0


def test_table_draws_every_value_about_equally_often() -> None:
    draws = table(Draw.CROP, 0, 0, 9000, (3, 2))
    assert draws.shape == (9000, 2)
    for column, bound in enumerate((3, 2)):
        counts = torch.bincount(draws[:, column])
        assert len(counts) == bound
        # within five standard deviations of a binomial
        assert (counts - 9000 / bound).abs().max() < 5 * (9000 * 0.25) ** 0.5
    assert not torch.equal(draws, table(Draw.CROP, 0, 1, 9000, (3, 2)))
    assert not torch.equal(draws, table(Draw.CROP, 1, 0, 9000, (3, 2)))
    assert not torch.equal(draws, table(Draw.CUTOUT, 0, 0, 9000, (3, 2)))


def test_a_table_is_the_same_wherever_it_lies() -> None:
    # as drawn before there were devices: no image may change its look
    assert table(Draw.CROP, 3, 5, 4, (9, 9)).tolist() == [[8, 6], [4, 7], [5, 2], [8, 0]]
    there = table(Draw.CROP, 3, 5, 4, (9, 9), torch.device("meta"))
    assert there.device.type == "meta" and there.shape == (4, 2)


def test_isolated_puts_the_generator_and_the_threads_back() -> None:
    torch_state, threads = torch.get_rng_state(), torch.get_num_threads()
    others = random.getstate(), repr(np.random.get_state())
    with isolated():
        assert torch.get_num_threads() == 1
        torch.default_generator.manual_seed(5)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.get_num_threads() == threads
    assert others == (random.getstate(), repr(np.random.get_state()))
