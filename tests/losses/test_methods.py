"""What holds for every method: limits, gradients, and the entropy that can be added."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.losses.by_hand import (
    CLASSES,
    STUDENT,
    TEACHER,
    mean,
    outputs,
    settings_for,
    softmax,
    some_features,
    student,
    terms_of,
)
from tser_cli.losses.base import Features, Outputs, load_method, reward_entropy
from tser_cli.settings import registry


@pytest.mark.parametrize("method", ["tsd", "seal", "tet", "dkd"])
def test_one_step_is_the_mean_of_itself(method: str) -> None:
    found = terms_of(method, outputs(STUDENT[:1]))
    alone = terms_of(method, outputs([STUDENT[0], STUDENT[0]]))
    assert found == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "silent"),
    [
        *((method, {"kd"}) for method in ("kd", "tskl", "tsce", "ts", "tser")),
        ("feature", {"feature"}),
        ("kd_feature", {"kd", "feature"}),
        ("bkd", {"kd", "feature"}),
        ("tsd", {"kd", "self"}),
        ("dkd", {"target", "others"}),
    ],
)
def test_a_student_equal_to_its_teacher(method: str, silent: set[str]) -> None:
    always_right = [max(range(CLASSES), key=z.__getitem__) for z in TEACHER]
    theirs = some_features().teacher
    equal = outputs([TEACHER] * 3, labels=always_right, features=Features(theirs, theirs))
    found = terms_of(method, equal)
    nothing = dict.fromkeys(silent, 0.0)
    assert {name: found[name] for name in silent} == pytest.approx(nothing, abs=1e-13)


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_mixed_labels_are_shares_in_every_cross_entropy(method: str) -> None:
    """It is linear in them; all else goes by the class of the largest share."""

    def found(targets: Tensor | None, labels: list[int]) -> dict[str, float]:
        return terms_of(
            method, replace(outputs(labels=labels), targets_NK=targets), label_smoothing=0.1
        )

    one_hot = torch.eye(CLASSES, dtype=torch.float64)
    mine, others = [0, 2], [1, 1]
    own, other = found(None, mine), found(None, others)
    assert found(one_hot[mine], mine) == pytest.approx(own, abs=1e-12)
    mixed = found(0.7 * one_hot[mine] + 0.3 * one_hot[others], mine)
    assert mixed["ce"] == pytest.approx(0.7 * own["ce"] + 0.3 * other["ce"], abs=1e-12)
    # what bkd weighs an image with is made of cross entropies
    rest = own.keys() - {"ce", "loss"} - ({"kd"} if method == "bkd" else set())
    assert {name: mixed[name] for name in rest} == {name: own[name] for name in rest}
    assert mixed["loss"] != own["loss"]


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_entropy_can_be_rewarded_under_any_method(method: str) -> None:
    entropy = mean([-sum(p * math.log(p) for p in softmax(z)) for step in STUDENT for z in step])
    without = settings_for(method, entropy_weight=0.0)
    plain = reward_entropy(load_method(method)(outputs(), without), outputs(), without)
    assert "entropy" not in plain
    settings = settings_for(method, entropy_weight=0.25)
    found = reward_entropy(load_method(method)(outputs(), settings), outputs(), settings)
    assert found["entropy"].item() == pytest.approx(entropy, abs=1e-12)
    assert found["loss"].item() == pytest.approx(plain["loss"].item() - 0.25 * entropy, abs=1e-9)


@pytest.mark.parametrize("method", sorted(registry.METHODS))
@pytest.mark.parametrize("steps", [1, 3])
def test_every_method_stays_finite_on_large_logits(method: str, steps: int) -> None:
    student = (50 * torch.randn(steps, 2, 5)).requires_grad_()
    of = Outputs(student, torch.tensor([4, 0]), 50 * torch.randn(2, 5), some_features())
    found = load_method(method)(of, settings_for(method))
    assert all(term.shape == () and torch.isfinite(term) for term in found.values())
    found["loss"].backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_the_teacher_gets_no_gradient(method: str) -> None:
    leaf = student()
    teacher = torch.tensor(TEACHER, dtype=torch.float64, requires_grad=True)
    load_method(method)(outputs(leaf, teacher), settings_for(method))["loss"].backward()
    assert teacher.grad is None
    assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_gradients_agree_with_finite_differences(method: str) -> None:
    # bkd's weights, and the targets of tsd and seal, are held fixed
    fixed = {"bkd": {"kd_weight": 0.0}, "tsd": {"beta": 0.0}, "seal": {"beta": 0.0}}
    settings = settings_for(method, **fixed.get(method, {}))
    teacher = some_features().teacher

    def loss(logits: Tensor, *features: Tensor) -> Tensor:
        of = outputs(logits, features=Features(features, teacher))
        return load_method(method)(of, settings)["loss"]

    assert torch.autograd.gradcheck(loss, (student(), *some_features(leaf=True).student))
