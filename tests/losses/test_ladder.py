"""The six objectives of the paper's ladder, by hand, at their limits, and by their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tser_cli.base.errors import ConfigError
from tser_cli.losses.base import Features, Outputs, load_method, teacher_logits
from tser_cli.settings import registry
from tser_cli.settings.config import MethodSettings

LADDER = ["ce", "kd", "tskl", "tsce", "ts", "tser"]
WITH_TEACHER = LADDER[1:]

# Two steps, two images, three classes; labels 0 and 2.
STUDENT = [[[1.0, 0.0, -1.0], [0.0, 0.5, 2.0]], [[3.0, 1.0, 0.0], [1.0, -1.0, 0.0]]]
TEACHER = [[4.0, 1.0, 0.0], [0.0, 2.0, 3.0]]
LABELS = [0, 2]
TEMPERATURE, CE_WEIGHT, KD_WEIGHT, ENTROPY_WEIGHT = 2.0, 0.5, 1.5, 0.3

# From STUDENT, TEACHER and LABELS in 40-digit decimal arithmetic.
CE_OF_MEAN = 0.452274751109809
CE_OF_STEPS = 0.572853415168548
KL_OF_MEAN = 0.092140934161164
KL_OF_STEPS = 0.124004360272213
ENTROPY_OF_STEPS = 0.735259557549741


def outputs(logits_TNK: Tensor | None = None, teacher_NK: Tensor | None = None) -> Outputs:
    return Outputs(
        torch.tensor(STUDENT, dtype=torch.float64) if logits_TNK is None else logits_TNK,
        torch.tensor(LABELS),
        torch.tensor(TEACHER, dtype=torch.float64) if teacher_NK is None else teacher_NK,
    )


def weights(method: str, **changes: float) -> MethodSettings:
    values = {
        "temperature": TEMPERATURE,
        "ce_weight": CE_WEIGHT,
        "kd_weight": KD_WEIGHT,
        "entropy_weight": ENTROPY_WEIGHT,
    }
    settings = registry.METHODS[method].settings
    read = {k: v for k, v in values.items() if k in settings.weights()}
    return settings(**{**read, **changes})


def value(method: str, of: Outputs, **changes: float) -> float:
    return load_method(method)(of, weights(method, **changes))["loss"].item()


def log_softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    total = math.log(sum(math.exp(logit / temperature) for logit in logits))
    return [logit / temperature - total for logit in logits]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def by_hand() -> dict[str, float]:
    """The five terms in plain Python."""
    averaged = [
        [mean([step[n][k] for step in STUDENT]) for k in range(3)] for n in range(len(LABELS))
    ]

    def kl(n: int, student: list[float]) -> float:
        p, q = log_softmax(TEACHER[n], TEMPERATURE), log_softmax(student, TEMPERATURE)
        return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))

    pairs = [(n, step[n]) for step in STUDENT for n in range(len(LABELS))]
    return {
        "ce_of_mean": mean([-log_softmax(z)[LABELS[n]] for n, z in enumerate(averaged)]),
        "ce_of_steps": mean([-log_softmax(z)[LABELS[n]] for n, z in pairs]),
        "kl_of_mean": mean([kl(n, z) for n, z in enumerate(averaged)]),
        "kl_of_steps": mean([kl(n, z) for n, z in pairs]),
        "entropy": mean([-sum(math.exp(a) * a for a in log_softmax(z)) for _, z in pairs]),
    }


def test_the_literals_are_the_hand_computed_terms() -> None:
    literals = [CE_OF_MEAN, CE_OF_STEPS, KL_OF_MEAN, KL_OF_STEPS, ENTROPY_OF_STEPS]
    assert list(by_hand().values()) == pytest.approx(literals, abs=1e-11)


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


def test_ce_by_hand_and_without_a_teacher() -> None:
    alone = Outputs(torch.tensor(STUDENT, dtype=torch.float64), torch.tensor(LABELS))
    terms = load_method("ce")(alone, weights("ce"))
    assert terms["ce"].item() == pytest.approx(CE_OF_MEAN, abs=1e-11)
    assert terms["loss"].item() == pytest.approx(0.5 * CE_OF_MEAN, abs=1e-11)


@pytest.mark.parametrize("method", LADDER)
def test_label_smoothing_reaches_every_method(method: str) -> None:
    smoothed = value(method, outputs(), label_smoothing=0.2)
    assert smoothed != pytest.approx(value(method, outputs()), abs=1e-3)


@pytest.mark.parametrize("method", ["tskl", "tsce", "ts"])
def test_one_step_leaves_nothing_to_separate(method: str) -> None:
    one_step = outputs(torch.tensor(STUDENT[:1], dtype=torch.float64))
    assert value(method, one_step) == pytest.approx(value("kd", one_step), abs=1e-12)


@pytest.mark.parametrize("method", ["tskl", "tsce", "ts"])
def test_equal_steps_leave_nothing_to_separate(method: str) -> None:
    equal = outputs(torch.tensor(STUDENT[:1] * 5, dtype=torch.float64))
    assert value(method, equal) == pytest.approx(value("kd", equal), abs=1e-12)


def test_tser_without_entropy_weight_is_ts() -> None:
    without = {"entropy_weight": 0.0}
    assert value("tser", outputs(), **without) == value("ts", outputs(), **without)


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_a_student_equal_to_the_teacher_has_nothing_to_learn_from_it(method: str) -> None:
    teacher_NK = torch.tensor(TEACHER, dtype=torch.float64)
    equal = outputs(teacher_NK.repeat(3, 1, 1), teacher_NK)
    assert load_method(method)(equal, weights(method))["kd"].item() == pytest.approx(0.0, abs=1e-13)


def test_a_larger_entropy_weight_lowers_the_loss() -> None:
    low, high = (value("tser", outputs(), entropy_weight=w) for w in (0.1, 0.6))
    assert high == pytest.approx(low - 0.5 * ENTROPY_OF_STEPS, abs=1e-11)


def test_a_step_of_descent_raises_the_entropy() -> None:
    logits_TNK = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    settings = weights("tser", ce_weight=0.0, kd_weight=0.0, entropy_weight=1.0)
    before = load_method("tser")(outputs(logits_TNK), settings)
    before["loss"].backward()
    assert logits_TNK.grad is not None
    stepped = (logits_TNK - 0.1 * logits_TNK.grad).detach()
    after = load_method("tser")(outputs(stepped), settings)
    assert after["entropy"].item() > before["entropy"].item() + 1e-3


@pytest.mark.parametrize("method", LADDER)
def test_gradients_agree_with_finite_differences(method: str) -> None:
    logits_TNK = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)

    def loss(logits: Tensor) -> Tensor:
        return load_method(method)(outputs(logits), weights(method))["loss"]

    assert torch.autograd.gradcheck(loss, (logits_TNK,))


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_the_teacher_gets_no_gradient(method: str) -> None:
    logits_TNK = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    teacher_NK = torch.tensor(TEACHER, dtype=torch.float64, requires_grad=True)
    load_method(method)(outputs(logits_TNK, teacher_NK), weights(method))["loss"].backward()
    assert teacher_NK.grad is None
    assert logits_TNK.grad is not None


@pytest.mark.parametrize("temperature", [2.0, 8.0, 32.0])
def test_the_gradient_of_kd_keeps_its_size_over_the_temperature(temperature: float) -> None:
    # Hinton et al., 2015: for a high temperature the gradient of tau^2 KL tends to
    # (z - z_A) / K for centred logits, whatever the temperature.
    teacher_NK = torch.tensor([[0.2, -0.1, -0.1]], dtype=torch.float64)
    logits_TNK = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    batch = Outputs(logits_TNK, torch.tensor([0]), teacher_NK)
    settings = weights("kd", ce_weight=0.0, kd_weight=1.0, temperature=temperature)
    load_method("kd")(batch, settings)["loss"].backward()
    assert logits_TNK.grad is not None
    assert logits_TNK.grad.flatten().tolist() == pytest.approx(
        [-0.2 / 3, 0.1 / 3, 0.1 / 3], abs=2e-3
    )


@pytest.mark.parametrize("method", sorted(registry.METHODS))
@pytest.mark.parametrize("steps", [1, 3])
def test_registered_methods_give_finite_scalars(method: str, steps: int) -> None:
    logits_TNK = 5 * torch.randn(steps, 4, 10)
    features = Features((torch.randn(4, 3, 2, 2),), (torch.randn(4, 3, 2, 2),))
    labels_N, teacher_NK = torch.tensor([0, 9, 3, 3]), 5 * torch.randn(4, 10)
    batch = Outputs(logits_TNK, labels_N, teacher_NK, features=features)
    terms = load_method(method)(batch, registry.METHODS[method].settings())
    assert "loss" in terms
    for name, term in terms.items():
        assert term.shape == () and torch.isfinite(term), name


def test_the_ladder_is_registered() -> None:
    assert set(LADDER) <= registry.METHODS.keys()


def test_a_missing_teacher_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="teacher's logits"):
        teacher_logits(Outputs(torch.zeros(1, 1, 2), torch.tensor([0])))


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'unknown method "tsre" \(did you mean "tser"\?\)'):
        load_method("tsre")
