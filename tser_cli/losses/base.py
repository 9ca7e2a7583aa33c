"""The terms that methods are made of: pure functions of logits.

z_t are the student's logits [T, N, K], one set a time step; z_A the teacher's [N, K]; y the
labels [N]. Targets never carry gradients.

What a method is: a module with a class `Settings` and a function `loss(outputs, settings)`.

`Settings` (a `MethodSettings`) describes the method and declares the weights that it reads.
`loss` returns a dict of named scalars with "loss" among them; the names become columns of
metrics.csv and curves in TensorBoard. Terms are reported unweighted, "loss" is their weighted sum.
A method that compares features also has `make_adapters(student_shapes, teacher_shapes)`.

Methods import torch where they compute, not at their top: their settings are read without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tser_cli.base.errors import ConfigError
from tser_cli.settings import registry
from tser_cli.settings.fields import Fraction, NonNegative, Positive
from tser_cli.settings.sections import MethodSettings

if TYPE_CHECKING:
    from torch import Tensor, nn


def time_mean(logits_TNK: Tensor) -> Tensor:
    """mean_t z_t: [T, N, K] -> [N, K]."""
    return logits_TNK.mean(0)


def cross_entropy(logits_NK: Tensor, labels_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """mean_n CE(z, y) in nats: [N, K], [N] -> scalar."""
    from torch.nn import functional as F

    return F.cross_entropy(logits_NK, labels_N, label_smoothing=label_smoothing)


def separated_cross_entropy(
    logits_TNK: Tensor, labels_N: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """TSCE = mean_n mean_t CE(z_t, y): [T, N, K], [N] -> scalar (Yu et al., CVPR 2025)."""
    steps = logits_TNK.shape[0]
    return cross_entropy(logits_TNK.flatten(0, 1), labels_N.repeat(steps), label_smoothing)


def kl_divergence(teacher_NK: Tensor, student_NK: Tensor, temperature: float) -> Tensor:
    """mean_n KL(softmax(z_A / tau) || softmax(z / tau)) in nats: [N, K] twice -> scalar.

    Without the factor tau^2 of Hinton et al. (2015); the methods multiply by it.
    """
    return kl_per_image(teacher_NK, student_NK, temperature).mean()


def separated_kl_divergence(teacher_NK: Tensor, student_TNK: Tensor, temperature: float) -> Tensor:
    """TSKL = mean_n mean_t KL(softmax(z_A / tau) || softmax(z_t / tau)) (Yu et al., CVPR 2025).

    [N, K], [T, N, K] -> scalar, in nats.
    """
    steps = student_TNK.shape[0]
    return kl_divergence(teacher_NK.repeat(steps, 1), student_TNK.flatten(0, 1), temperature)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(z) in nats: [..., K] -> [...]."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z / tau): [..., K] -> [..., K]."""
    return (logits / temperature).log_softmax(-1)


def kl_per_image(target: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(softmax(target / tau) || softmax(student / tau)) of each row: [..., K] twice -> [...]."""
    log_p = log_probabilities(target.detach(), temperature)
    return (log_p.exp() * (log_p - log_probabilities(student, temperature))).sum(-1)


Terms = dict[str, "Tensor"]
Shape = tuple[int, int, int]
MakeAdapters = Callable[[list[Shape], list[Shape]], "nn.Module"]


class Supervised(MethodSettings):
    """The settings of a method with a cross entropy.

    `ce_weight` scales it; `label_smoothing` is the share of the target that all classes divide.
    """

    ce_weight: NonNegative = 1.0
    label_smoothing: Fraction = 0.0


class Distilling(Supervised):
    """The settings of a method with a KL term: `kd_weight` scales it, `temperature` softens it."""

    temperature: Positive = 2.0
    kd_weight: NonNegative = 1.0


@dataclass(frozen=True)
class TrainingProgress:
    """How far the training has come before this step: the same after a resume.

    `epoch` counts from 0; `fraction` is the part of all steps that is done, from 0 to below 1.
    """

    epoch: int = 0
    fraction: float = 0.0


@dataclass(frozen=True)
class Outputs:
    """What a method sees of a batch; `teacher_NK` is None for methods without a teacher.

    `firing_rates_L`: mean spikes per neuron per time step of each layer of neurons, in the order in
    which the network was built, with gradients; for methods that say `reads_firing_rates`.
    `firing_rate`: the same over all neurons together.
    """

    logits_TNK: Tensor
    labels_N: Tensor
    teacher_NK: Tensor | None = None
    features: Features | None = None
    progress: TrainingProgress = TrainingProgress()
    firing_rates_L: Tensor | None = None
    firing_rate: Tensor | None = None


@dataclass(frozen=True)
class Features:
    """Outputs of each stage, for methods that compare them.

    `student`: [N, C, H, W] a stage, averaged over time and passed through the adapters, which
    train with the student; `teacher`: [N, C, H, W] a stage, without gradients.
    """

    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]


# `settings` is of the method's own class, which a common type can't say.
Method = Callable[[Outputs, Any], Terms]


def load_method(name: str) -> Method:
    """Return the loss function of a registered method. Raises ConfigError for an unknown name."""
    entry = registry.lookup("method", registry.METHODS, name)
    method: Method = entry.loss
    return method


def load_adapters(name: str) -> MakeAdapters | None:
    """Return the maker of a method's adapters, None for methods that compare logits alone."""
    make: MakeAdapters | None = registry.lookup("method", registry.METHODS, name).make_adapters
    return make


def check_terms(name: str, found: Any) -> None:
    """Raise ConfigError where a method's function does not return what it must."""
    said = f"method {name}: its function returns"
    if not isinstance(found, dict) or "loss" not in found:
        shown = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise ConfigError(
            f'{said} {shown}; it must be a dict of named terms with "loss" among them'
        )
    shapes = {key: getattr(term, "shape", None) for key, term in found.items()}
    wrong = [f"{key} {shape}" for key, shape in shapes.items() if shape != ()]
    if wrong:
        raise ConfigError(f"{said} {', '.join(wrong)}; every term must be a scalar tensor")
    if not found["loss"].requires_grad:
        raise ConfigError(f"{said} a loss that does not depend on the student's outputs")


def reward_entropy(found: Terms, outputs: Outputs, settings: MethodSettings) -> Terms:
    """`found` with entropy_weight * mean_n mean_t H(softmax(z_t)) taken from the loss.

    What TSER adds to its other terms (Yu et al., CVPR 2025), for any method; nothing where the
    weight is 0 or the method rewards entropy by itself.
    """
    if settings.entropy_weight == 0.0 or "entropy" in found:
        return found
    mean_entropy = entropy(outputs.logits_TNK).mean()
    weighted = settings.entropy_weight * mean_entropy
    return {**found, "loss": found["loss"] - weighted, "entropy": mean_entropy}


def charge_firing(found: Terms, outputs: Outputs, settings: MethodSettings) -> Terms:
    """`found` with rate_weight * mean firing rate added to the loss, for any method.

    The plain penalty: a spike costs the same in every layer. Nothing where the weight is 0.
    """
    if settings.rate_weight == 0.0:
        return found
    assert outputs.firing_rate is not None, "the engine provides the rate"
    added = settings.rate_weight * outputs.firing_rate
    return {**found, "loss": found["loss"] + added, "rate": outputs.firing_rate}


def teacher_logits(outputs: Outputs) -> Tensor:
    """Return the teacher's logits, which the engine must have provided."""
    assert outputs.teacher_NK is not None, "this method needs the teacher's logits"
    return outputs.teacher_NK


def distillation(ce: Tensor, kl: Tensor, settings: Distilling) -> Terms:
    """ce_weight * CE + kd_weight * tau^2 * KL, the form that all logit methods share.

    tau^2 keeps the gradient's size independent of the temperature (Hinton et al., 2015, section 2).
    """
    scaled = settings.temperature**2 * kl
    return {
        "loss": settings.ce_weight * ce + settings.kd_weight * scaled,
        "ce": ce,
        "kd": scaled,
    }


def mean_cross_entropy(outputs: Outputs, settings: Supervised) -> Tensor:
    """CE of the time-averaged logits."""
    averaged_NK = time_mean(outputs.logits_TNK)
    return cross_entropy(averaged_NK, outputs.labels_N, settings.label_smoothing)


def step_cross_entropy(outputs: Outputs, settings: Supervised) -> Tensor:
    """TSCE: cross entropy at every time step."""
    return separated_cross_entropy(outputs.logits_TNK, outputs.labels_N, settings.label_smoothing)


def stage_features(outputs: Outputs) -> Features:
    """Return the features of both networks, which the engine must have provided."""
    assert outputs.features is not None, "this method needs features"
    return outputs.features


def mean_kl(outputs: Outputs, temperature: float) -> Tensor:
    """KL of the teacher to the time-averaged logits."""
    return kl_divergence(teacher_logits(outputs), time_mean(outputs.logits_TNK), temperature)


def step_kl(outputs: Outputs, temperature: float) -> Tensor:
    """TSKL: KL of the teacher to the logits of every time step."""
    return separated_kl_divergence(teacher_logits(outputs), outputs.logits_TNK, temperature)
