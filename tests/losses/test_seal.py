"""seal by hand and at its limits; no code of its authors is published."""

from __future__ import annotations

import math

import pytest
import torch

from tests.losses.by_hand import (
    CE_OF_STEPS,
    IMAGES,
    LABELS,
    STUDENT,
    TEACHER,
    Logits,
    check_fixed_target,
    check_weights,
    kl,
    mean,
    outputs,
    softmax,
    student,
    terms_of,
)
from tser_cli.losses import seal


def test_seal_by_hand() -> None:
    # Where a step is wrong, written out: the student's wrong logit takes the true one's value, the
    # teacher's wrong and true logits the smaller of theirs.
    copies = [
        ([2.0, 0.5, -1.0], [3.0, 1.0, -0.5]),  # right
        ([0.4, 0.2, 0.4], [0.4, 2.5, 0.4]),  # says 0, true 2
        ([0.3, 0.3, 0.0], [1.0, 1.0, -0.5]),  # says 1, true 0
        ([-0.5, 1.0, 1.0], [0.4, 2.0, 2.0]),  # says 1, true 2
        ([1.2, -0.4, 0.6], [3.0, 1.0, -0.5]),  # right
        ([0.1, -1.0, 0.1], [0.4, 2.5, 0.4]),  # says 0, true 2
    ]
    ela = mean([kl(theirs, ours, 3.0) for ours, theirs in copies])
    sta = mean([sta_by_hand([step[n] for step in STUDENT]) for n in range(IMAGES)])
    found = terms_of("seal", outputs())
    loss = CE_OF_STEPS + 0.6 * ela + 0.15 * sta
    expected = {"ce": CE_OF_STEPS, "ela": ela, "sta": sta, "loss": loss}
    assert found == pytest.approx(expected, abs=1e-12)


def confidence(z: Logits) -> float:
    return 1 + sum(p * math.log(p) for p in softmax(z)) / math.log(len(z))


def cosine(a: Logits, b: Logits) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def sta_by_hand(steps: list[Logits]) -> float:
    """The mean over the steps of one image."""
    found = []
    for i, z in enumerate(steps):
        others = [other for j, other in enumerate(steps) if j != i]
        weights = softmax([confidence(other) * cosine(z, other) for other in others])
        target = [
            sum(w * other[k] for w, other in zip(weights, others, strict=True))
            for k in range(len(z))
        ]
        found.append(kl(target, z, 3.0))
    return mean(found)


def test_one_step_has_no_others_to_learn_from() -> None:
    assert terms_of("seal", outputs(STUDENT[:1]))["sta"] == 0.0


def test_equal_steps_teach_each_other_nothing() -> None:
    assert terms_of("seal", outputs([STUDENT[0]] * 4))["sta"] == pytest.approx(0.0, abs=1e-13)


def test_ela_leaves_right_answers_as_they_are_and_works_on_copies() -> None:
    right = [[[2.0, 0.5, -1.0], [1.0, 0.2, 4.0]]]
    before = torch.tensor(right[0]), torch.tensor(TEACHER)
    after = seal.aligned_copies(*before, torch.tensor(LABELS))
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    expected = mean([kl(TEACHER[n], right[0][n], 3.0) for n in range(IMAGES)])
    assert terms_of("seal", outputs(right))["ela"] == pytest.approx(expected, abs=1e-12)
    student, teacher = torch.tensor(STUDENT[1]), torch.tensor(TEACHER)
    seal.aligned_copies(student, teacher, torch.tensor(LABELS))
    assert torch.equal(student, torch.tensor(STUDENT[1]))
    assert torch.equal(teacher, torch.tensor(TEACHER))


def test_a_sure_step_weighs_more_in_seal_s_targets() -> None:
    # the first step learns from one that is nearly sure and one that is nearly flat
    z = torch.tensor([[[1.0, 0.0, 0.0]], [[9.0, 0.0, 0.0]], [[0.1, 0.0, 0.0]]])
    target = seal.step_targets(z)[0, 0, 0].item()
    sure, flat = confidence([9.0, 0.0, 0.0]), confidence([0.1, 0.0, 0.0])
    weight = 1 / (1 + math.exp(flat - sure))  # both have a cosine of 1
    assert target == pytest.approx(weight * 9.0 + (1 - weight) * 0.1, rel=1e-5)


def test_its_targets_carry_no_gradient() -> None:
    leaf = student()
    seal.step_alignment(outputs(leaf), 3.0).backward()
    targets = seal.step_targets(torch.tensor(STUDENT, dtype=torch.float64)).tolist()
    check_fixed_target(leaf.grad, targets)


def test_the_weights_it_reads() -> None:
    check_weights("seal", {"temperature": 3.0, "alpha": 0.6, "beta": 0.15})
