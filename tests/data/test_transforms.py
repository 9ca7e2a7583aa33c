from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tser_cli.base.errors import ConfigError
from tser_cli.data.base import Dataset, ImageSource, TensorSource
from tser_cli.data.transforms import (
    BOUNDS,
    AutoAugment,
    Stream,
    check_augmentation,
    crop_flip,
    cutout_,
    evaluation_pipeline,
    is_costly,
    is_deterministic,
    normalise,
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


def test_evaluation_only_normalises(make_dataset: Make) -> None:
    dataset = make_dataset()
    result = evaluation_pipeline(dataset.test, dataset.spec)(0, [5, 2])
    for image, index in zip(result, (5, 2), strict=True):
        raw = dataset.test.image(index).double() / 255
        mean, std = (
            torch.tensor(values).double().view(3, 1, 1)
            for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        )
        torch.testing.assert_close(image.double(), (raw - mean) / std, atol=1e-6, rtol=0)


def test_training_shows_a_crop_flip_and_square_of_each_image(make_dataset: Make) -> None:
    dataset = make_dataset()
    augment = AugmentConfig(crop_padding=2, flip=True, cutout=5)
    pipeline = training_pipeline(dataset.train, dataset.spec, augment, seed=3)
    seen = set()
    for index, image in enumerate(pipeline(7, range(50))):
        candidates = {
            (top, left, flip): candidate
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            for candidate in [
                normalise(
                    crop_flip(
                        dataset.train.image(index)[None],
                        torch.tensor([[top, left]]),
                        torch.tensor([flip]),
                        2,
                    ),
                    dataset.spec.mean,
                    dataset.spec.std,
                )[0]
            ]
        }
        hole = (image == 0).all(dim=0)
        assert hole.sum() == 25
        rows, columns = hole.any(dim=1).nonzero(), hole.any(dim=0).nonzero()
        assert rows.max() - rows.min() == columns.max() - columns.min() == 4
        matches = [
            key
            for key, candidate in candidates.items()
            if torch.equal(candidate[:, ~hole], image[:, ~hole])
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 20


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(crop_padding=2, flip=True, cutout=4),
        AugmentConfig(autoaugment="cifar10"),
        AugmentConfig(random_resized_crop=True, flip=True, autoaugment="cifar10", cutout=3),
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
@given(channels=st.sampled_from([1, 3]), data=st.data())
def test_an_image_does_not_depend_on_its_batch(
    make_dataset: Make, channels: int, data: st.DataObject
) -> None:
    dataset = make_dataset(channels=channels)
    augment = AugmentConfig(crop_padding=2, flip=True, autoaugment="cifar10", cutout=3)
    pipeline = training_pipeline(dataset.train, dataset.spec, augment, seed=4)
    order = data.draw(st.permutations(range(50)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 49))))
    parts = [order[start:end] for start, end in pairwise([0, *cuts, 50])]
    split = torch.cat([pipeline(1, part) for part in parts])
    assert torch.equal(split, pipeline(1, range(50))[list(order)])


def test_an_image_does_not_depend_on_the_number_of_threads(make_dataset: Make) -> None:
    dataset = make_dataset(train=600)
    augment = AugmentConfig(crop_padding=2, flip=True, autoaugment="cifar10", cutout=3)
    pipeline = training_pipeline(dataset.train, dataset.spec, augment, seed=4)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(pipeline(0, range(600)))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_autoaugment_comes_between_flip_and_cutout(make_dataset: Make) -> None:
    dataset = make_dataset()
    steps: dict[str, dict[str, Any]] = {
        "before": {"crop_padding": 2, "flip": True},
        "all": {"crop_padding": 2, "flip": True, "autoaugment": "cifar10", "cutout": 4},
        "no cutout": {"crop_padding": 2, "flip": True, "autoaugment": "cifar10"},
    }
    pipelines = {
        name: training_pipeline(dataset.train, dataset.spec, AugmentConfig(**step), seed=3)
        for name, step in steps.items()
    }
    # levels of grey again: the inverse of normalise
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (dataset.spec.mean, dataset.spec.std))
    levels = ((pipelines["before"](5, range(50)) * std + mean) * 255).round().to(torch.uint8)
    choices = table(Stream.AUTOAUGMENT, 3, 5, 50, BOUNDS).long()
    changed = AutoAugment(12, 10)(levels, choices)
    expected = normalise(changed, dataset.spec.mean, dataset.spec.std)
    assert torch.equal(pipelines["no cutout"](5, range(50)), expected)
    cut = pipelines["all"](5, range(50))
    assert torch.equal(cut[cut != 0], expected[cut != 0])
    assert ((cut == 0).all(dim=1).flatten(1).sum(dim=1) >= 16).all()


def test_autoaugment_works_on_grey_images() -> None:
    from tser_cli.data.builtin import load
    from tser_cli.settings.config import DataConfig

    dataset = load(DataConfig())
    augment = AugmentConfig(autoaugment="cifar10")
    images = training_pipeline(dataset.train, dataset.spec, augment, seed=0)(0, range(40))
    plain = evaluation_pipeline(dataset.train, dataset.spec)(0, range(40))
    assert images.shape == (40, 1, 8, 8)
    assert not torch.equal(images, plain)


def test_random_resized_crop_replaces_the_padded_crop(make_dataset: Make) -> None:
    dataset = make_dataset()
    both, alone = (
        training_pipeline(
            dataset.train,
            dataset.spec,
            AugmentConfig(random_resized_crop=True, crop_padding=padding),
            seed=0,
        )(0, range(10))
        for padding in (3, 0)
    )
    assert torch.equal(both, alone)


@pytest.mark.parametrize("key", ["cutout", "crop_padding"])
def test_sizes_that_hide_the_whole_image_are_refused(make_dataset: Make, key: str) -> None:
    spec = make_dataset().spec
    check_augmentation(AugmentConfig(**{key: 9}), spec)
    with pytest.raises(ConfigError, match=f"augment.{key} = 10 .* set it below 10"):
        check_augmentation(AugmentConfig(**{key: 10}), spec)


def test_any_augmentation_makes_training_random() -> None:
    assert is_deterministic(AugmentConfig())
    changed = ({"flip": True}, {"cutout": 1}, {"crop_padding": 1}, {"autoaugment": "cifar10"})
    for change in (*changed, {"random_resized_crop": True}):
        assert not is_deterministic(AugmentConfig.model_validate(change))


def test_workers_pay_where_training_would_wait(make_dataset: Make) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    here = make_dataset().train
    assert isinstance(here, TensorSource)
    elsewhere = TensorSource(here.images_MCHW.to("meta"), here.labels)
    files = Files()
    none, automatic, resized = (
        AugmentConfig(crop_padding=2, flip=True),
        AugmentConfig(autoaugment="cifar10"),
        AugmentConfig(random_resized_crop=True),
    )
    cases: list[tuple[ImageSource, AugmentConfig, torch.device, bool]] = [
        (here, none, cpu, False),
        (here, none, gpu, False),
        (here, automatic, cpu, False),
        (here, automatic, gpu, True),
        (elsewhere, automatic, torch.device("meta"), False),
        (here, resized, cpu, True),
        (files, none, cpu, True),
        (files, automatic, cpu, True),
    ]
    for source, augment, device, answer in cases:
        assert is_costly(source, augment, device) is answer


class Files:
    labels = torch.zeros(2, dtype=torch.int64)

    def __len__(self) -> int:
        return 2

    def image(self, index: int) -> torch.Tensor:
        raise NotImplementedError
