"""What a data set is, by name, and how a part is split off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tser_cli.base.errors import ConfigError, DataError
from tser_cli.data.base import Dataset, DataSpec, TensorSource, load_dataset, split_off
from tser_cli.settings import registry
from tser_cli.settings.config import DataConfig


def test_every_registered_data_set_has_a_loader() -> None:
    for entry in registry.DATASETS.values():
        assert callable(registry.load(entry.target))


def test_the_named_data_set_is_loaded() -> None:
    assert load_dataset(DataConfig(name="digits")).spec.name == "digits"
    with pytest.raises(ConfigError, match='did you mean "digits"'):
        load_dataset(DataConfig.model_construct(name="digit"))


def pixels(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.uint8)


SPEC = DataSpec("own", 1, 8, 8, ("a", "b", "c"), (0.5,), (0.5,))
THIRDS = torch.arange(6) % 3


class OneByOne:
    """A source that reads its images one by one, of any size."""

    labels = torch.arange(6) % 3

    def __init__(self, image: torch.Tensor) -> None:
        self._image = image

    def __len__(self) -> int:
        return 6

    def image(self, index: int) -> torch.Tensor:
        return self._image


def of(images: torch.Tensor, labels: torch.Tensor = THIRDS) -> Callable[[], object]:
    return lambda: of_source(TensorSource(images, labels))


def of_source(source: object) -> object:
    return Dataset(SPEC, TensorSource(pixels(6, 1, 8, 8), THIRDS), source)  # type: ignore[arg-type]


def fails() -> object:
    raise OSError("disk on fire")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: 3, "its function returns int, not a Dataset"),
        (fails, r"can't be loaded: OSError: disk on fire \(.*test_base\.py, line \d+\)"),
        (of(torch.rand(6, 1, 8, 8), torch.arange(6)), "must be uint8"),
        (of(pixels(6, 1, 8, 8), torch.arange(5)), r"labels must .*\[6\].*\[5"),
        (
            of(pixels(6, 1, 8, 8), torch.arange(6)),
            r"data set own_data: its test images: labels go from 0 to 5; there are 3 classes",
        ),
        (of(pixels(6, 1, 8, 8), THIRDS - 1), "go from -1 to 1"),
        (of(pixels(0, 1, 8, 8), torch.arange(0)), "test images: there are no"),
        (of(pixels(6, 1, 9, 8)), r"first .*\[1, 9, 8\]"),
        (lambda: of_source(OneByOne(pixels(3, 9, 8))), r"is torch.uint8 \[3, 9, 8\]; they must be"),
        (lambda: of_source(OneByOne(torch.rand(1, 8, 8))), r"the first is torch.float32"),
        (
            lambda: replace(SPEC, mean=(0.1, 0.2)),
            "mean and std have 2 and 1 numbers, for images",
        ),
        (lambda: of_source(OneByOne(pixels(1, 8, 8))), ""),  # one by one they may have any size
        (lambda: of_source(OneByOne(pixels(1, 30, 20))), ""),
    ],
)
def test_a_data_set_of_a_plug_in_is_checked(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], object], said: str
) -> None:
    monkeypatch.setitem(registry.DATASETS, "own_data", registry.DatasetEntry("elsewhere:load"))
    monkeypatch.setattr(registry, "load", lambda target: lambda config: make())
    if said:
        with pytest.raises(DataError, match=said):
            load_dataset(DataConfig(name="own_data"))
    else:
        assert load_dataset(DataConfig(name="own_data")).spec == SPEC


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(10, 40), min_size=2, max_size=6),
    fraction=st.floats(0.2, 0.8),
)
def test_parts_are_disjoint_whole_and_stratified(counts: list[int], fraction: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    training, validation = split_off(labels, fraction)
    assert sorted(training.tolist() + validation.tolist()) == list(range(len(labels)))
    assert training.tolist() == sorted(training.tolist())
    assert abs(len(validation) - fraction * len(labels)) <= 1
    held = torch.bincount(labels[validation], minlength=len(counts)).tolist()
    assert all(abs(h - fraction * c) <= 2 for h, c in zip(held, counts, strict=True))


def test_the_same_labels_give_the_same_split_whatever_the_random_state() -> None:
    labels = torch.arange(200) % 5
    torch.manual_seed(1)
    first = split_off(labels, 0.25)[1]
    torch.manual_seed(2)
    assert torch.equal(first, split_off(labels, 0.25)[1])
    training, validation = split_off(labels, 0.0)  # no fraction holds nothing out
    assert (training.tolist(), validation.tolist()) == (list(range(200)), [])


@pytest.mark.parametrize(
    ("labels", "fraction"),
    [
        ([0, 1] * 50, 1e-9),  # one validation image, two classes
        ([0, 1] * 50, 0.999),  # no training image left
        ([0] * 99 + [1], 0.5),  # a single image of a class
        ([0] * 98 + [1] * 2, 0.1),  # a rare class gets no validation image
    ],
)
def test_a_split_without_all_classes_is_refused(labels: list[int], fraction: float) -> None:
    with pytest.raises(DataError, match=f"validation_fraction = {fraction} does not split") as told:
        split_off(torch.tensor(labels), fraction)
    assert "n_splits" not in str(told.value) and "test_size" not in str(told.value)
