"""dkd by hand, at its limits, and against its authors' code.

Authors: megvii-research/mdistiller a08d46f, mdistiller/distillers/DKD.py, `dkd_loss`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.losses.by_hand import (
    CE_OF_STEPS,
    CLASSES,
    IMAGES,
    LABELS,
    STUDENT,
    TEACHER,
    Logits,
    check_authors,
    check_weights,
    kl,
    mean,
    outputs,
    settings_for,
    softmax,
    terms_of,
)
from tser_cli.losses import dkd
from tser_cli.losses.base import Outputs, TrainingProgress, load_method


def target_and_others(n: int, z: Logits, tau: float) -> tuple[float, float]:
    y = LABELS[n]
    p, q = softmax(TEACHER[n], tau)[y], softmax(z, tau)[y]
    target = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    rest = [k for k in range(CLASSES) if k != y]
    return tau**2 * target, kl([TEACHER[n][k] for k in rest], [z[k] for k in rest], tau)


def test_dkd_by_hand() -> None:
    pairs = [target_and_others(n, step[n], 4.0) for step in STUDENT for n in range(IMAGES)]
    target, others = (mean(list(values)) for values in zip(*pairs, strict=True))
    for epoch, weight in ((0, 1 / 20), (9, 10 / 20), (19, 1.0), (99, 1.0)):
        found = terms_of("dkd", replace(outputs(), progress=TrainingProgress(epoch)))
        loss = CE_OF_STEPS + weight * (target + 8 * others)
        expected = {"ce": CE_OF_STEPS, "target": target, "others": others, "loss": loss}
        assert found == pytest.approx(expected, abs=1e-12)
    at_once = terms_of("dkd", outputs(), kd_warmup_epochs=0.0)["loss"]
    assert at_once == pytest.approx(CE_OF_STEPS + target + 8 * others, abs=1e-12)


def test_the_two_terms_of_dkd_make_up_the_kl() -> None:
    # Zhao et al., equation 7: KL = target + (1 - p_y) others, of every row.
    student, labels = torch.tensor(STUDENT[0], dtype=torch.float64), torch.tensor(LABELS)
    teacher = torch.tensor(TEACHER, dtype=torch.float64)
    target = dkd.target_kl(teacher, student, labels, 1.0).tolist()
    others = dkd.other_kl(teacher, student, labels, 1.0).tolist()
    for n in range(IMAGES):
        rest = 1 - softmax(TEACHER[n])[LABELS[n]]
        whole = kl(TEACHER[n], STUDENT[0][n], 1.0)
        assert target[n] + rest * others[n] == pytest.approx(whole, abs=1e-12)


def test_dkd_still_learns_from_a_student_that_is_surer_than_its_teacher() -> None:
    # In float32 1 - p_y is exactly 0 here, and its logarithm -34.5.
    student = torch.tensor([[[40.0, 5.0, 5.5 - math.log(2)]]], requires_grad=True)
    of = Outputs(student, torch.tensor([0]), torch.tensor([[2.0, 0.0, 0.0]]))
    stated = {"temperature": 1.0, "ce_weight": 0.0, "beta": 0.0, "kd_warmup_epochs": 0.0}
    settings = settings_for("dkd", **stated)
    found = load_method("dkd")(of, settings)
    p = math.exp(2) / (math.exp(2) + 2)
    rest = math.log(math.exp(-35.0) + math.exp(-34.5) / 2)
    expected = p * math.log(p) + (1 - p) * (math.log(1 - p) - rest)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-5)
    found["loss"].backward()
    assert student.grad[0, 0, 0].item() == pytest.approx(1 - p, rel=1e-5)


def test_the_weights_it_reads() -> None:
    check_weights(
        "dkd",
        {"temperature": 4.0, "kd_weight": 1.0, "alpha": 1.0, "beta": 8.0}
        | {"kd_warmup_epochs": 20.0},
    )


@pytest.mark.parametrize(
    ("value", "gradient", "epoch", "weights"),
    [
        (
            5.173728347214758,
            [
                *(-0.020788466374627917, 0.012320629684509456, 0.008467836690117294),
                *(0.9631375405714464, -0.9394881893251265, -0.02364935124631965),
            ],
            0,
            {"ce_weight": 0.0, "kd_warmup_epochs": 0.0},
        ),
        (  # as on ImageNet
            0.44556887686609126,
            [
                *(-0.012063296003196894, 0.009862642910982584, 0.0022006530922143207),
                *(0.057162245529283576, -0.04447224885871945, -0.012689996670564115),
            ],
            0,
            {"ce_weight": 0.0, "kd_warmup_epochs": 1.0, "temperature": 1.0, "beta": 0.5},
        ),
        (
            2.3425305924010678,
            [
                *(-0.040930944162110995, 0.03229522277780014, 0.008635721384310565),
                *(0.32419526556291123, -0.19739312283603527, -0.12680214272687593),
            ],
            4,  # theirs count from 1
            {},
        ),
    ],
)
def test_losses_and_gradients_are_the_authors(
    value: float, gradient: list[float], epoch: int, weights: dict[str, float]
) -> None:
    check_authors("dkd", value, gradient, epoch, **weights)
