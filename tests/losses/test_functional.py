"""The terms of the objectives against plain arithmetic."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tser_cli.losses import base

STEPS_CLASSES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 6))


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def kl(teacher: list[float], student: list[float], temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def test_time_mean_averages_over_the_first_axis() -> None:
    logits_TNK = torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]])
    assert base.time_mean(logits_TNK).tolist() == [[2.0, 4.0]]


def test_cross_entropy_of_known_probabilities() -> None:
    # Logits that are logarithms of 0.7, 0.2 and 0.1, and of 0.25, 0.25 and 0.5.
    logits_NK = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], dtype=torch.float64).log()
    value = base.cross_entropy(logits_NK, torch.tensor([0, 2]))
    assert value.item() == pytest.approx((-math.log(0.7) - math.log(0.5)) / 2, abs=1e-12)


def test_label_smoothing_mixes_in_the_mean_over_the_classes() -> None:
    logits_NK = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    value = base.cross_entropy(logits_NK, torch.tensor([0]), label_smoothing=0.3)
    uniform = -(math.log(0.7) + math.log(0.2) + math.log(0.1)) / 3
    assert value.item() == pytest.approx(0.7 * -math.log(0.7) + 0.3 * uniform, abs=1e-12)


def test_separated_cross_entropy_pairs_every_step_with_its_own_label() -> None:
    probabilities_TNK = torch.tensor(
        [[[0.9, 0.1], [0.6, 0.4]], [[0.2, 0.8], [0.3, 0.7]]], dtype=torch.float64
    )
    value = base.separated_cross_entropy(probabilities_TNK.log(), torch.tensor([0, 1]))
    by_hand = -(math.log(0.9) + math.log(0.4) + math.log(0.2) + math.log(0.7)) / 4
    assert value.item() == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_divergence_of_the_teacher_to_the_student(temperature: float) -> None:
    teacher, student = [[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]], [[1.0, 1.0, 0.0], [0.0, -2.0, 3.0]]
    value = base.kl_divergence(
        torch.tensor(teacher, dtype=torch.float64),
        torch.tensor(student, dtype=torch.float64),
        temperature,
    )
    by_hand = sum(kl(a, b, temperature) for a, b in zip(teacher, student, strict=True)) / 2
    assert value.item() == pytest.approx(by_hand, abs=1e-12)


def test_kl_divergence_as_a_literal() -> None:
    # KL((3/4, 1/4) || (1/2, 1/2)) = ln 2 - H(1/4) = 0.130812...
    teacher_NK = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    value = base.kl_divergence(teacher_NK, torch.zeros(1, 2, dtype=torch.float64), 1.0)
    assert value.item() == pytest.approx(0.130812035941137, abs=1e-12)


def test_separated_kl_pairs_every_step_with_its_own_image() -> None:
    teacher = [[2.0, 0.0], [0.0, 1.0]]
    student = [[[1.0, 0.0], [0.0, 3.0]], [[0.0, 0.0], [1.0, 0.0]]]
    value = base.separated_kl_divergence(
        torch.tensor(teacher, dtype=torch.float64), torch.tensor(student, dtype=torch.float64), 2.0
    )
    by_hand = sum(kl(teacher[n], student[t][n], 2.0) for t in range(2) for n in range(2)) / 4
    assert value.item() == pytest.approx(by_hand, abs=1e-12)


def test_separated_kl_is_zero_where_the_student_is_the_teacher() -> None:
    teacher_NK = normal(3, 5)
    value = base.separated_kl_divergence(teacher_NK, teacher_NK.repeat(4, 1, 1), 3.0)
    assert value.item() == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_entropy_of_uniform_logits_is_log_k(classes: int) -> None:
    entropy_TN = base.entropy(torch.full((2, 3, classes), 7.0, dtype=torch.float64))
    assert entropy_TN.shape == (2, 3)
    assert entropy_TN.flatten().tolist() == pytest.approx([math.log(classes)] * 6, abs=1e-12)


def test_entropy_of_known_probabilities() -> None:
    logits_NK = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], dtype=torch.float64).log()
    by_hand = [1.5 * math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.05)]
    assert base.entropy(logits_NK).tolist() == pytest.approx(by_hand, abs=1e-12)


def test_entropy_of_certainty_is_zero_not_nan() -> None:
    logits_K = torch.tensor([1e4, 0.0, 0.0], requires_grad=True)
    entropy = base.entropy(logits_K)
    entropy.backward()
    assert entropy.item() == 0.0
    assert logits_K.grad is not None and torch.isfinite(logits_K.grad).all()


def test_targets_carry_no_gradient() -> None:
    teacher_NK, student_TNK = normal(2, 3).requires_grad_(), normal(2, 2, 3).requires_grad_()
    base.separated_kl_divergence(teacher_NK, student_TNK, 2.0).backward()
    assert teacher_NK.grad is None
    assert student_TNK.grad is not None and student_TNK.grad.abs().sum() > 0


@given(STEPS_CLASSES, st.integers(0, 10**6), st.floats(0.5, 20.0))
def test_kl_is_never_negative(shape: tuple[int, int, int], seed: int, temperature: float) -> None:
    _, images, classes = shape
    teacher_NK, student_TNK = normal(images, classes, seed=seed), normal(*shape, seed=seed + 1)
    value = base.separated_kl_divergence(teacher_NK, student_TNK, temperature).item()
    assert value >= -1e-12


@given(STEPS_CLASSES, st.integers(0, 10**6))
def test_entropy_lies_between_zero_and_log_k(shape: tuple[int, int, int], seed: int) -> None:
    entropy_TN = base.entropy(normal(*shape, seed=seed))
    assert ((entropy_TN >= 0) & (entropy_TN <= math.log(shape[2]) + 1e-12)).all()


@given(STEPS_CLASSES, st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(
    shape: tuple[int, int, int], seed: int, rng: random.Random
) -> None:
    _, images, classes = shape
    student_TNK, teacher_NK = normal(*shape, seed=seed), normal(images, classes, seed=seed + 1)
    labels_N = torch.arange(images) % classes
    order = rng.sample(range(images), images)
    shuffled = base.separated_kl_divergence(teacher_NK[order], student_TNK[:, order], 2.0)
    kept = base.separated_kl_divergence(teacher_NK, student_TNK, 2.0)
    assert shuffled.item() == pytest.approx(kept.item(), rel=1e-9, abs=1e-12)
    shuffled = base.separated_cross_entropy(student_TNK[:, order], labels_N[order])
    kept = base.separated_cross_entropy(student_TNK, labels_N)
    assert shuffled.item() == pytest.approx(kept.item(), rel=1e-9)
