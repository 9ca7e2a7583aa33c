"""`tsd`: temporal separation with self-distillation (Yu et al., ICML 2025).

L = ce_weight mean_t CE(z_t, y) + alpha tau^2 mean_t KL_tau(z_A, z_t)
    + beta tau^2 mean_t KL_tau(zhat, z_t), tau = 3.
zhat: the mean of the logits of the steps that are right for that image (`target` correct), or of
all steps (`target` all). Targets carry no gradient.
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)), in nats.

As in the authors' code (make_teacher, github.com/Intelli-Chip-Lab/
snn_temporal_decoupling_distillation) an image with no right step has zero logits as its target, and
is pulled towards equal probabilities; with `no_right_step` skip it has no such term. Their tau is 3
on CIFAR and 1 on ImageNet; alpha 0.2 and beta 0.5 are those of the commands in their readme.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tser_cli.losses import base
from tser_cli.losses.base import Outputs, Supervised, Terms
from tser_cli.settings.fields import NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


class Settings(Supervised):
    """The settings of `tsd`.

    `alpha` scales the teacher's term, `beta` that of the student's own right steps; `target` and
    `no_right_step` say what the latter learns from.
    """

    summary: ClassVar[str] = "ts, with the mean of the right steps as a second teacher"
    source: ClassVar[str] = "temporal decoupling, ICML 2025, arXiv 2501.15925"

    name: str = "tsd"
    temperature: Positive = 3.0
    alpha: NonNegative = 0.2
    beta: NonNegative = 0.5
    target: Literal["correct", "all"] = "correct"
    no_right_step: Literal["uniform", "skip"] = "uniform"


def ensemble(logits_TNK: Tensor, labels_N: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """zhat [N, K], and whether a step went into it [N]; else its logits are all 0."""
    right_TN = logits_TNK.argmax(-1) == labels_N
    used_TN = right_TN if target == "correct" else right_TN.new_ones(right_TN.shape)
    count_N = used_TN.sum(0)
    total_NK = (logits_TNK.detach() * used_TN.unsqueeze(-1)).sum(0)
    # at least 1: where no step is right the sum is 0 already, and 0 / 0 would be no number
    return total_NK / count_N.clamp_min(1).unsqueeze(-1), count_N > 0


def self_distillation(outputs: Outputs, settings: Settings) -> Tensor:
    """tau^2 mean_n mean_t KL_tau(zhat, z_t)."""
    tau, logits_TNK = settings.temperature, outputs.logits_TNK
    target_NK, has_N = ensemble(logits_TNK, outputs.labels_N, settings.target)
    # one target for all steps: each is drawn to where the right ones agree
    kl_TN = base.kl_per_image(target_NK.expand_as(logits_TNK), logits_TNK, tau)
    if settings.no_right_step == "skip":
        # a skipped image stays in the mean, as 0: else few right ones would weigh more
        kl_TN = kl_TN * has_N
    return tau**2 * kl_TN.mean()


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy, the teacher's KL and the ensemble's KL, all at every step."""
    tau = settings.temperature
    ce, kd = base.step_cross_entropy(outputs, settings), tau**2 * base.step_kl(outputs, tau)
    own = self_distillation(outputs, settings)
    total = settings.ce_weight * ce + settings.alpha * kd + settings.beta * own
    return {"loss": total, "ce": ce, "kd": kd, "self": own}
