"""What a method is, and the terms that methods are made of.

A method is a class of settings and a function `loss(outputs, settings)`. The settings (a
`MethodSettings`) describe the method and declare the weights that it reads. The function returns a
dict of named scalars with "loss" among them; the names become columns of metrics.csv and curves in
TensorBoard. Terms are reported unweighted, "loss" is their weighted sum. A method that compares
features also has `make_adapters(student_shapes, teacher_shapes)`.

z_t are the student's logits [T, N, K], one set a time step, and zbar their mean over time; z_A are
the teacher's logits [N, K], y the labels [N]. Where images are mixed, y is in every cross entropy
the shares of the classes [N, K], and elsewhere the class of the largest share. Targets never carry
gradients. Methods import torch where they compute, not at their top: the command line reads their
settings without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tser_cli.base.errors import ConfigError
from tser_cli.settings import registry
from tser_cli.settings.config import MethodSettings
from tser_cli.settings.fields import Fraction, NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor

Terms = dict[str, "Tensor"]
Shape = tuple[int, int, int]


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
    `firing_rate`: the same over all neurons together. `targets_NK`: the shares of the classes where
    images are mixed, of which the label has the largest; else None.
    """

    logits_TNK: Tensor
    labels_N: Tensor
    teacher_NK: Tensor | None = None
    features: Features | None = None
    # one for all will do: it is frozen
    progress: TrainingProgress = TrainingProgress()
    firing_rates_L: Tensor | None = None
    firing_rate: Tensor | None = None
    targets_NK: Tensor | None = None

    @property
    def target(self) -> Tensor:
        """Return what a cross entropy compares with: labels [N], or shares of classes [N, K]."""
        return self.labels_N if self.targets_NK is None else self.targets_NK


@dataclass(frozen=True)
class Features:
    """Outputs of each stage, for methods that compare them.

    `student`: [N, C, H, W] a stage, averaged over time and passed through the adapters, which
    train with the student; `teacher`: [N, C, H, W] a stage, without gradients.
    """

    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]


class Supervised(MethodSettings):
    """The settings of a method with a cross entropy.

    `ce_weight` scales it; `label_smoothing` is the share of the target that all classes divide.
    """

    ce_weight: NonNegative = 1.0
    label_smoothing: Fraction = 0.0


class Distilling(Supervised):
    """The settings of a method with a KL term: `kd_weight` scales it, `temperature` softens it."""

    # Sweeps, in recipes/ablations/results: fashion-mnist_temperature.csv (1, 2, 4: 2 is best, but
    # nothing is resolved), glyphs_search.csv (2, 3, 6).
    temperature: Positive = 2.0
    # glyphs_search.csv: more is better for kd and ts up to its end, 16 / tau^2 (n = 1, one epoch);
    # glyphs_components.csv, glyphs_each_at_its_best.csv (1.8 and 16 / tau^2, n = 10, two epochs):
    # nothing is resolved on held-out images.
    kd_weight: NonNegative = 1.0


def distillation(ce: Tensor, kl: Tensor, settings: Distilling) -> Terms:
    """ce_weight * CE + kd_weight * tau^2 * KL, the form that all logit methods share.

    tau^2 keeps the gradient's size independent of the temperature (Hinton et al., 2015, section 2).
    """
    scaled = settings.temperature**2 * kl
    total = settings.ce_weight * ce + settings.kd_weight * scaled
    return {"loss": total, "ce": ce, "kd": scaled}


def mean_cross_entropy(outputs: Outputs, settings: Supervised) -> Tensor:
    """mean_n CE(zbar, y) in nats: time is averaged before the loss."""
    from torch.nn import functional as F

    zbar_NK = time_mean(outputs.logits_TNK)
    return F.cross_entropy(zbar_NK, outputs.target, label_smoothing=settings.label_smoothing)


def step_cross_entropy(outputs: Outputs, settings: Supervised) -> Tensor:
    """TSCE = mean_n mean_t CE(z_t, y) in nats: every time step by itself (Yu et al., CVPR 2025)."""
    import torch
    from torch.nn import functional as F

    logits_TNK, smoothing = outputs.logits_TNK, settings.label_smoothing
    # one call over T * N rows: their mean is the mean over time of the steps' means
    target_M = torch.cat([outputs.target] * len(logits_TNK))
    return F.cross_entropy(logits_TNK.flatten(0, 1), target_M, label_smoothing=smoothing)


def mean_kl(outputs: Outputs, temperature: float) -> Tensor:
    """mean_n KL_tau(z_A, zbar), without the factor tau^2: time is averaged before the loss."""
    # over images: the "mean" of torch's own kl_div divides by the classes as well
    return kl_per_image(teacher_logits(outputs), time_mean(outputs.logits_TNK), temperature).mean()


def step_kl(outputs: Outputs, temperature: float) -> Tensor:
    """TSKL = mean_n mean_t KL_tau(z_A, z_t), without tau^2: every time step by itself."""
    logits_TNK = outputs.logits_TNK
    teacher_MK = teacher_logits(outputs).repeat(len(logits_TNK), 1)
    return kl_per_image(teacher_MK, logits_TNK.flatten(0, 1), temperature).mean()


def kl_per_image(target: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(softmax(target / tau) || softmax(student / tau)) of each row: [..., K] twice -> [...]."""
    # Detached here, so that no method can train its target by mistake. From logarithms: where a
    # probability underflows to 0, its own logarithm would make 0 * inf.
    log_p = log_probabilities(target.detach(), temperature)
    return (log_p.exp() * (log_p - log_probabilities(student, temperature))).sum(-1)


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z / tau): [..., K] -> [..., K]."""
    return (logits / temperature).log_softmax(-1)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(z) in nats: [..., K] -> [...]."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def time_mean(logits_TNK: Tensor) -> Tensor:
    """zbar = mean_t z_t: [T, N, K] -> [N, K]."""
    return logits_TNK.mean(0)


def teacher_logits(outputs: Outputs) -> Tensor:
    """Return the teacher's logits, which the engine must have provided."""
    assert outputs.teacher_NK is not None, "this method needs the teacher's logits"
    return outputs.teacher_NK


def stage_features(outputs: Outputs) -> Features:
    """Return the features of both networks, which the engine must have provided."""
    assert outputs.features is not None, "this method needs features"
    return outputs.features


def reward_entropy(found: Terms, outputs: Outputs, settings: MethodSettings) -> Terms:
    """`found` with entropy_weight * mean_n mean_t H(softmax(z_t)) taken from the loss.

    What TSER adds to its other terms (Yu et al., CVPR 2025), for any method; nothing where the
    weight is 0 or the method rewards entropy by itself.
    """
    # tser has it in its own loss, and its settings have the weight as well
    if settings.entropy_weight == 0.0 or "entropy" in found:
        return found
    mean_entropy = entropy(outputs.logits_TNK).mean()
    # taken away: a student that is rewarded for doubt does not copy the teacher's sure mistakes
    weighted = settings.entropy_weight * mean_entropy
    return {**found, "loss": found["loss"] - weighted, "entropy": mean_entropy}


def charge_firing(found: Terms, outputs: Outputs, settings: MethodSettings) -> Terms:
    """`found` with rate_weight * mean firing rate added to the loss, for any method.

    The plain penalty: a spike costs the same in every layer. Nothing where the weight is 0.
    """
    if settings.rate_weight == 0.0:
        return found
    assert outputs.firing_rate is not None, "the engine provides the rate"
    # the rate carries gradients, through the surrogate of every neuron
    added = settings.rate_weight * outputs.firing_rate
    return {**found, "loss": found["loss"] + added, "rate": outputs.firing_rate}


# `settings` is of the method's own class, which a common type can't say.
Method = Callable[[Outputs, Any], Terms]


def load_method(name: str) -> Method:
    """Return the loss function of a registered method. Raises ConfigError for an unknown name."""
    entry = registry.lookup("method", registry.METHODS, name)
    method: Method = entry.loss
    return method


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
    # torch itself would say so at the first backward, after the folder of the run was made
    if not found["loss"].requires_grad:
        raise ConfigError(f"{said} a loss that does not depend on the student's outputs")
