"""Logits, features and plain arithmetic that the tests of the methods share.

Authors' numbers are what their functions gave in float64 on these tensors; each file names the
commit.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tser_cli.losses.base import Features, Outputs, TrainingProgress, load_method
from tser_cli.settings import registry
from tser_cli.settings.config import MethodSettings

Logits = list[float]
# Three steps, two images, three classes. Image 0 (label 0) is right at steps 1 and 3; image 1
# (label 2) never.
STUDENT = [
    [[2.0, 0.5, -1.0], [1.0, 0.2, 0.4]],
    [[0.3, 1.5, 0.0], [-0.5, 2.0, 1.0]],
    [[1.2, -0.4, 0.6], [0.8, -1.0, 0.1]],
]
TEACHER = [[3.0, 1.0, -0.5], [0.4, 2.5, 2.0]]
LABELS = [0, 2]
STEPS, IMAGES, CLASSES = 3, 2, 3
COMMON = {"entropy_weight": 0.0, "rate_weight": 0.0, "ce_weight": 1.0, "label_smoothing": 0.0}


def outputs(
    student: list[list[Logits]] | Tensor = STUDENT,
    teacher: list[Logits] | Tensor = TEACHER,
    labels: list[int] = LABELS,
    features: Features | None = None,
) -> Outputs:
    logits = [
        values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
        for values in (student, teacher)
    ]
    features = features or some_features()
    return Outputs(logits[0], torch.tensor(labels), logits[1], features=features)


def student() -> Tensor:
    return torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)


def some_features(leaf: bool = False) -> Features:
    """Two stages of two images: [2, 3, 2, 2] and [2, 4, 1, 1], from a generator of their own."""
    draw = torch.Generator().manual_seed(11)
    shapes = [(2, 3, 2, 2), (2, 4, 1, 1)]
    made = [torch.randn(*s, dtype=torch.float64, generator=draw) for s in [*shapes, *shapes]]
    return Features(tuple(x.requires_grad_(leaf) for x in made[:2]), tuple(made[2:]))


def settings_for(method: str, **weights: float | str) -> MethodSettings:
    return registry.METHODS[method].settings(**weights)


def terms_of(method: str, of: Outputs, **settings: float | str) -> dict[str, float]:
    found = load_method(method)(of, settings_for(method, **settings))
    return {name: term.item() for name, term in found.items()}


def softmax(z: Logits, tau: float = 1.0) -> Logits:
    powers = [math.exp(value / tau) for value in z]
    return [power / sum(powers) for power in powers]


def ce(z: Logits, label: int) -> float:
    return -math.log(softmax(z)[label])


def kl(target: Logits, z: Logits, tau: float) -> float:
    """tau^2 KL(softmax(target / tau) || softmax(z / tau))."""
    pairs = zip(softmax(target, tau), softmax(z, tau), strict=True)
    return tau**2 * sum(p * math.log(p / q) for p, q in pairs)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def average(rows: list[Logits]) -> Logits:
    return [mean(list(column)) for column in zip(*rows, strict=True)]


CE_OF_STEPS = mean([ce(step[n], LABELS[n]) for step in STUDENT for n in range(IMAGES)])
AVERAGED = [average([step[n] for step in STUDENT]) for n in range(IMAGES)]
CE_OF_MEAN = mean([ce(AVERAGED[n], LABELS[n]) for n in range(IMAGES)])


def squared_error(stage: int) -> float:
    """Sum of the squared differences of a stage, value by value."""
    of = some_features()
    ours, theirs = (part[stage].flatten().tolist() for part in (of.student, of.teacher))
    return math.fsum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))


def check_weights(method: str, own: dict[str, float | str]) -> None:
    """Hold the weights that a method reads, with their defaults, beside those of every method."""
    settings = registry.METHODS[method].settings
    assert settings.weights() == COMMON | own
    assert settings().model_dump() == {"name": method} | COMMON | own


def check_authors(
    method: str, value: float, gradient: list[float], epoch: int = 0, **weights: float
) -> None:
    """Hold the loss of authors' code, and its gradient at step 1 of both images."""
    leaf = student()
    of = replace(outputs(leaf), progress=TrainingProgress(epoch))
    loss = load_method(method)(of, settings_for(method, **weights))["loss"]
    loss.backward()
    # tsd's make_teacher divides by the count + 1e-8
    assert loss.item() == pytest.approx(value, rel=1e-7)
    assert leaf.grad is not None
    assert leaf.grad[0].flatten().tolist() == pytest.approx(gradient, rel=1e-6)


def check_fixed_target(gradient_TNK: Tensor, targets_TNK: list[list[Logits]]) -> None:
    """Hold tau (softmax(z / tau) - softmax(target / tau)), tau = 3: the target has no gradient."""
    for step, of_step, gradient in zip(STUDENT, targets_TNK, gradient_TNK.tolist(), strict=True):
        for z, target, found in zip(step, of_step, gradient, strict=True):
            pairs = zip(softmax(z, 3.0), softmax(target, 3.0), strict=True)
            expected = [3.0 * (q - p) / (STEPS * IMAGES) for q, p in pairs]
            assert found == pytest.approx(expected, abs=1e-9)
