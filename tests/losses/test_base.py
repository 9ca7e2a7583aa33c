"""The terms of the objectives against plain arithmetic."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tser_cli.losses.base import (
    Outputs,
    Supervised,
    entropy,
    kl_per_image,
    mean_cross_entropy,
    mean_kl,
    step_cross_entropy,
    step_kl,
)
from tser_cli.losses.ladder import CeSettings

Term = Callable[[Outputs, Supervised], Tensor]

STEPS_CLASSES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 6))


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("term", [mean_cross_entropy, step_cross_entropy])
def test_label_smoothing_mixes_in_the_mean_over_the_classes(term: Term) -> None:
    logits_TNK = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64).log()
    settings = CeSettings(label_smoothing=0.3)
    value = term(Outputs(logits_TNK, torch.tensor([0])), settings)
    uniform = -(math.log(0.7) + math.log(0.2) + math.log(0.1)) / 3
    assert value.item() == pytest.approx(0.7 * -math.log(0.7) + 0.3 * uniform, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_as_a_literal(temperature: float) -> None:
    # KL((3/4, 1/4) || (1/2, 1/2)) = ln 2 - H(1/4) = 0.130812...
    target_NK = torch.tensor([[temperature * math.log(3.0), 0.0]], dtype=torch.float64)
    value_N = kl_per_image(target_NK, torch.zeros(1, 2, dtype=torch.float64), temperature)
    assert value_N.tolist() == pytest.approx([0.130812035941137], abs=1e-12)


@given(STEPS_CLASSES, st.integers(0, 10**6), st.floats(0.5, 20.0))
def test_bounds_of_kl_and_entropy(
    shape: tuple[int, int, int], seed: int, temperature: float
) -> None:
    target, student = normal(*shape, seed=seed), normal(*shape, seed=seed + 1)
    assert (kl_per_image(target, student, temperature) >= -1e-12).all()
    entropy_TN = entropy(student)
    assert ((entropy_TN >= 0) & (entropy_TN <= math.log(shape[2]) + 1e-12)).all()


@given(STEPS_CLASSES, st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(
    shape: tuple[int, int, int], seed: int, rng: random.Random
) -> None:
    _, images, classes = shape
    student_TNK, teacher_NK = normal(*shape, seed=seed), normal(images, classes, seed=seed + 1)
    labels_N = torch.arange(images) % classes
    order = rng.sample(range(images), images)
    kept = Outputs(student_TNK, labels_N, teacher_NK)
    shuffled = Outputs(student_TNK[:, order], labels_N[order], teacher_NK[order])
    for term in (step_cross_entropy, mean_cross_entropy):
        found, expected = (term(of, CeSettings()).item() for of in (shuffled, kept))
        assert found == pytest.approx(expected, rel=1e-9)
    for kl in (step_kl, mean_kl):
        found, expected = (kl(of, 2.0).item() for of in (shuffled, kept))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 1000])
def test_entropy_of_uniform_logits_is_log_k(classes: int) -> None:
    entropy_TN = entropy(torch.full((2, 3, classes), 7.0, dtype=torch.float64))
    assert entropy_TN.shape == (2, 3)
    assert entropy_TN.flatten().tolist() == pytest.approx([math.log(classes)] * 6, abs=1e-12)


def test_entropy_of_known_probabilities() -> None:
    logits_NK = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], dtype=torch.float64).log()
    by_hand = [1.5 * math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.05)]
    assert entropy(logits_NK).tolist() == pytest.approx(by_hand, abs=1e-12)


def test_entropy_of_certainty_is_zero_not_nan() -> None:
    logits_K = torch.tensor([1e4, 0.0, 0.0], requires_grad=True)
    found = entropy(logits_K)
    found.backward()
    assert found.item() == 0.0
    assert torch.isfinite(logits_K.grad).all()
