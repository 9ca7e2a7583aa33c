"""What a method is: a module with a function `loss(outputs, settings) -> terms`.

`terms` is a dict of named scalars with "loss" among them; the names become columns of
metrics.csv and curves in TensorBoard. Terms are reported unweighted, "loss" is their weighted sum.
A method that compares features also has `make_adapters(student_shapes, teacher_shapes)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from tser_cli import registry
from tser_cli.config import MethodConfig
from tser_cli.losses import functional as terms

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Outputs:
    """What a method sees of a batch; `teacher_NK` is None for methods without a teacher."""

    logits_TNK: Tensor
    labels_N: Tensor
    teacher_NK: Tensor | None = None
    label_smoothing: float = 0.0
    features: Features | None = None


@dataclass(frozen=True)
class Features:
    """Outputs of each stage, for methods that compare them.

    `student`: [N, C, H, W] a stage, averaged over time and passed through the adapters, which
    train with the student; `teacher`: [N, C, H, W] a stage, without gradients.
    """

    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]


Shape = tuple[int, int, int]
Method = Callable[[Outputs, MethodConfig], Terms]
MakeAdapters = Callable[[list[Shape], list[Shape]], nn.Module]


def load_method(name: str) -> Method:
    """The loss function of a registered method. Raises ConfigError for an unknown name."""
    entry = registry.lookup("method", registry.METHODS, name)
    method: Method = registry.load(f"{entry.target}:loss")
    return method


def load_adapters(name: str) -> MakeAdapters | None:
    """The maker of a method's adapters, None for methods that compare logits alone."""
    module = registry.load(registry.lookup("method", registry.METHODS, name).target)
    make: MakeAdapters | None = getattr(module, "make_adapters", None)
    return make


def reward_entropy(found: Terms, outputs: Outputs, settings: MethodConfig) -> Terms:
    """`found` with entropy_weight * mean_n mean_t H(softmax(z_t)) taken from the loss.

    What TSER adds to its other terms (Yu et al., CVPR 2025), for any method; nothing where the
    weight is 0 or the method rewards entropy by itself.
    """
    if settings.entropy_weight == 0.0 or "entropy" in found:
        return found
    entropy = terms.entropy(outputs.logits_TNK).mean()
    return {**found, "loss": found["loss"] - settings.entropy_weight * entropy, "entropy": entropy}


def teacher_logits(outputs: Outputs) -> Tensor:
    """The teacher's logits, which the engine must have provided."""
    assert outputs.teacher_NK is not None, "this method needs the teacher's logits"
    return outputs.teacher_NK


def distillation(ce: Tensor, kl: Tensor, settings: MethodConfig) -> Terms:
    """ce_weight * CE + kd_weight * tau^2 * KL, the form that all logit methods share.

    tau^2 keeps the gradient's size independent of the temperature (Hinton et al., 2015, section 2).
    """
    scaled = settings.temperature**2 * kl
    return {
        "loss": settings.ce_weight * ce + settings.kd_weight * scaled,
        "ce": ce,
        "kd": scaled,
    }


def mean_cross_entropy(outputs: Outputs) -> Tensor:
    """CE of the time-averaged logits."""
    return terms.cross_entropy(
        terms.time_mean(outputs.logits_TNK), outputs.labels_N, outputs.label_smoothing
    )


def step_cross_entropy(outputs: Outputs) -> Tensor:
    """TSCE: cross entropy at every time step."""
    return terms.separated_cross_entropy(
        outputs.logits_TNK, outputs.labels_N, outputs.label_smoothing
    )


def stage_features(outputs: Outputs) -> Features:
    """The features of both networks, which the engine must have provided."""
    assert outputs.features is not None, "this method needs features"
    return outputs.features


def mean_kl(outputs: Outputs, temperature: float) -> Tensor:
    """KL of the teacher to the time-averaged logits."""
    return terms.kl_divergence(
        teacher_logits(outputs), terms.time_mean(outputs.logits_TNK), temperature
    )


def step_kl(outputs: Outputs, temperature: float) -> Tensor:
    """TSKL: KL of the teacher to the logits of every time step."""
    return terms.separated_kl_divergence(teacher_logits(outputs), outputs.logits_TNK, temperature)
