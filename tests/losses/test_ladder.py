"""The six objectives of the paper's ladder by hand; test_methods has what holds of every method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tser_cli.base.errors import ConfigError
from tser_cli.losses.base import Outputs, load_method, teacher_logits
from tser_cli.settings import registry
from tser_cli.settings.config import MethodSettings

# Two steps, two images, three classes; labels 0 and 2.
STUDENT = [[[1.0, 0.0, -1.0], [0.0, 0.5, 2.0]], [[3.0, 1.0, 0.0], [1.0, -1.0, 0.0]]]
TEACHER = [[4.0, 1.0, 0.0], [0.0, 2.0, 3.0]]
LABELS = [0, 2]

# From STUDENT, TEACHER and LABELS in 40-digit decimal arithmetic.
CE_OF_MEAN = 0.452274751109809
CE_OF_STEPS = 0.572853415168548
KL_OF_MEAN = 0.092140934161164
KL_OF_STEPS = 0.124004360272213
ENTROPY_OF_STEPS = 0.735259557549741


def outputs(logits_TNK: Tensor | None = None) -> Outputs:
    return Outputs(
        torch.tensor(STUDENT, dtype=torch.float64) if logits_TNK is None else logits_TNK,
        torch.tensor(LABELS),
        torch.tensor(TEACHER, dtype=torch.float64),
    )


def weights(method: str, **changes: float) -> MethodSettings:
    values = {"temperature": 2.0, "ce_weight": 0.5, "kd_weight": 1.5, "entropy_weight": 0.3}
    settings = registry.METHODS[method].settings
    read = {k: v for k, v in values.items() if k in settings.weights()}
    return settings(**{**read, **changes})


def value(method: str, of: Outputs, **changes: float) -> float:
    return load_method(method)(of, weights(method, **changes))["loss"].item()


@pytest.mark.parametrize(
    ("method", "ce", "kl"),
    [
        ("kd", CE_OF_MEAN, KL_OF_MEAN),
        ("tskl", CE_OF_MEAN, KL_OF_STEPS),
        ("tsce", CE_OF_STEPS, KL_OF_MEAN),
        ("ts", CE_OF_STEPS, KL_OF_STEPS),
    ],
)
def test_distillation_by_hand(method: str, ce: float, kl: float) -> None:
    terms = load_method(method)(outputs(), weights(method))
    assert terms.keys() == {"loss", "ce", "kd"}
    assert terms["ce"].item() == pytest.approx(ce, abs=1e-11)
    assert terms["kd"].item() == pytest.approx(4 * kl, abs=1e-11)
    assert terms["loss"].item() == pytest.approx(0.5 * ce + 1.5 * 4 * kl, abs=1e-11)


def test_tser_by_hand() -> None:
    terms = load_method("tser")(outputs(), weights("tser"))
    by_hand = 0.5 * CE_OF_STEPS + 1.5 * 4 * KL_OF_STEPS - 0.3 * ENTROPY_OF_STEPS
    assert terms["entropy"].item() == pytest.approx(ENTROPY_OF_STEPS, abs=1e-11)
    assert terms["loss"].item() == pytest.approx(by_hand, abs=1e-11)
    without = {"entropy_weight": 0.0}
    assert value("tser", outputs(), **without) == value("ts", outputs(), **without)


def test_ce_by_hand_and_without_a_teacher() -> None:
    alone = Outputs(torch.tensor(STUDENT, dtype=torch.float64), torch.tensor(LABELS))
    terms = load_method("ce")(alone, weights("ce"))
    assert terms["ce"].item() == pytest.approx(CE_OF_MEAN, abs=1e-11)
    assert terms["loss"].item() == pytest.approx(0.5 * CE_OF_MEAN, abs=1e-11)


@pytest.mark.parametrize("method", ["tskl", "tsce", "ts"])
@pytest.mark.parametrize("copies", [1, 5])
def test_one_step_or_equal_steps_leave_nothing_to_separate(method: str, copies: int) -> None:
    equal = outputs(torch.tensor(STUDENT[:1] * copies, dtype=torch.float64))
    assert value(method, equal) == pytest.approx(value("kd", equal), abs=1e-12)


@pytest.mark.parametrize("temperature", [2.0, 8.0, 32.0])
def test_the_gradient_of_kd_keeps_its_size_over_the_temperature(temperature: float) -> None:
    # Hinton et al., 2015: for a high temperature the gradient of tau^2 KL tends to
    # (z - z_A) / K for centred logits, whatever the temperature.
    teacher_NK = torch.tensor([[0.2, -0.1, -0.1]], dtype=torch.float64)
    logits_TNK = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    batch = Outputs(logits_TNK, torch.tensor([0]), teacher_NK)
    settings = weights("kd", ce_weight=0.0, kd_weight=1.0, temperature=temperature)
    load_method("kd")(batch, settings)["loss"].backward()
    assert logits_TNK.grad.flatten().tolist() == pytest.approx(
        [-0.2 / 3, 0.1 / 3, 0.1 / 3], abs=2e-3
    )


def test_a_missing_teacher_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="teacher's logits"):
        teacher_logits(Outputs(torch.zeros(1, 1, 2), torch.tensor([0])))


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'unknown method "tsre" \(did you mean "tser"\?\)'):
        load_method("tsre")
