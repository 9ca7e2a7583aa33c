from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tser_cli.base.errors import DataError
from tser_cli.data.base import train_validation


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(10, 40), min_size=2, max_size=6),
    fraction=st.floats(0.2, 0.8),
)
def test_parts_are_disjoint_whole_and_stratified(counts: list[int], fraction: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    training, validation = train_validation(labels, fraction)
    assert sorted(training.tolist() + validation.tolist()) == list(range(len(labels)))
    assert training.tolist() == sorted(training.tolist())
    assert abs(len(validation) - fraction * len(labels)) <= 1
    held = torch.bincount(labels[validation], minlength=len(counts)).tolist()
    assert all(abs(h - fraction * c) <= 2 for h, c in zip(held, counts, strict=True))


def test_no_fraction_holds_nothing_out() -> None:
    training, validation = train_validation(torch.tensor([0, 0, 1]), 0.0)
    assert training.tolist() == [0, 1, 2]
    assert validation.tolist() == []


def test_the_same_labels_give_the_same_split_whatever_the_random_state() -> None:
    labels = torch.arange(200) % 5
    torch.manual_seed(1)
    first = train_validation(labels, 0.25)[1]
    torch.manual_seed(2)
    assert torch.equal(first, train_validation(labels, 0.25)[1])


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
    with pytest.raises(DataError, match=f"validation_fraction = {fraction} does not split"):
        train_validation(torch.tensor(labels), fraction)
