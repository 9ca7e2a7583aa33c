"""bkd by hand, at its limits, and against its authors' code.

Authors: Intelligent-Computing-Research-Group/BKDSNN dd6bd53, Spike-Element-Wise-ResNet:
imagenet/train_distillation.py, `get_logits_loss`; cifar10dvs/loss.py, `BRDLoss`.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.losses.by_hand import (
    AVERAGED,
    CE_OF_MEAN,
    IMAGES,
    LABELS,
    STEPS,
    TEACHER,
    ce,
    check_weights,
    kl,
    mean,
    outputs,
    settings_for,
    softmax,
    squared_error,
    student,
    terms_of,
)
from tser_cli.losses import bkd
from tser_cli.losses.adapters import Blur
from tser_cli.losses.base import Features, load_method
from tser_cli.settings import registry


def bkd_weight(n: int) -> float:
    return 1 - math.exp(-ce(AVERAGED[n], LABELS[n]) / (ce(TEACHER[n], LABELS[n]) + 1e-7))


def test_bkd_by_hand() -> None:
    weighted = [bkd_weight(n) * kl(TEACHER[n], AVERAGED[n], 2.0) for n in range(IMAGES)]
    error = squared_error(1) / 8  # of the last stage alone, [2, 4, 1, 1]
    expected = {"ce": CE_OF_MEAN, "kd": mean(weighted), "feature": error}
    expected["loss"] = CE_OF_MEAN + mean(weighted) + 16.384 * error
    assert terms_of("bkd", outputs()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("logit", "weight"), [(1e3, 0.0), (0.0, 0.5), (-1e3, 1.0)])
def test_the_weight_of_bkd_runs_from_0_to_1(logit: float, weight: float) -> None:
    # the teacher's cross entropy is 1, the student's 0, log 2 and 1000
    teacher = torch.tensor([[-math.log(math.e - 1), 0.0]], dtype=torch.float64)
    student = torch.tensor([[logit, 0.0]], dtype=torch.float64)
    found = bkd.distance_weights(student, teacher, torch.tensor([0]))
    assert found.item() == pytest.approx(weight, abs=1e-7)
    perfect = torch.tensor([[900.0, 0.0, 0.0]])  # divides by no zero
    assert bkd.distance_weights(torch.zeros(1, 3), perfect, torch.tensor([0])).item() == 1.0


def test_the_weights_of_bkd_carry_no_gradient() -> None:
    leaf = student()
    settings = settings_for("bkd", ce_weight=0.0, feature_weight=0.0)
    load_method("bkd")(outputs(leaf), settings)["loss"].backward()
    for n in range(IMAGES):
        pairs = zip(softmax(AVERAGED[n], 2.0), softmax(TEACHER[n], 2.0), strict=True)
        expected = [bkd_weight(n) * 2.0 * (q - p) / (STEPS * IMAGES) for q, p in pairs]
        for step in range(STEPS):
            assert leaf.grad[step, n].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_weights_it_reads() -> None:
    check_weights("bkd", {"temperature": 2.0, "kd_weight": 1.0, "feature_weight": 16.384})


def sines(shape: tuple[int, ...], pace: float, start: float = 0.0) -> Tensor:
    size = torch.Size(shape).numel()
    return torch.sin(torch.arange(size, dtype=torch.float64) * pace + start).reshape(shape)


def test_the_logits_of_bkd() -> None:
    same = sines((2, 3, 2, 2), 0.5)
    leaf = student()
    settings = registry.METHODS["bkd"].settings(ce_weight=0.0)
    found = load_method("bkd")(outputs(leaf, features=Features((same,), (same,))), settings)
    found["loss"].backward()
    expected = [
        *(-0.06666047267125637, 0.02776098416078236, 0.03889948851047401),
        *(0.03512310973967319, -0.03024397018869499, -0.004879139550978196),
    ]
    assert leaf.grad[0].flatten().tolist() == pytest.approx(expected, rel=1e-9)


def test_the_features_of_bkd() -> None:
    blur = Blur(4, 3).double().eval()  # theirs with no channel masked
    with torch.no_grad():
        for number, weight in enumerate(blur.parameters()):
            weight.copy_(0.3 * sines(tuple(weight.shape), 0.7 + 0.1 * number, 1.0))
    leaf = torch.cos(torch.arange(32, dtype=torch.float64) * 0.37).reshape(2, 4, 2, 2)
    leaf.requires_grad_()
    features = Features(blur((leaf,)), (sines((2, 3, 2, 2), 0.53),))
    error = load_method("bkd")(
        outputs(student(), features=features), registry.METHODS["bkd"].settings()
    )
    # their weight multiplies the sum over the 3 x 2 x 2 values of a map
    loss = 2e-3 * 3 * 2 * 2 * error["feature"]
    loss.backward()
    assert loss.item() == pytest.approx(0.008962449558847257, rel=1e-9)
    expected = [
        *(0.00022885441344813571, 0.00014904204136599472, -0.00020319965598957466),
        *(-0.0002090594871854659, 0.0002847954849799101, 0.00028880997876212225),
    ]
    assert leaf.grad.flatten()[:6].tolist() == pytest.approx(expected, rel=1e-9)
