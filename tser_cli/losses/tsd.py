"""`tsd`: temporal separation with self-distillation (temporal decoupling, ICML 2025).

L = ce_weight mean_t CE(z_t, y) + alpha tau^2 mean_t KL_tau(z_A, z_t)
    + beta tau^2 mean_t KL_tau(zhat, z_t), tau = 3.
zhat: the mean of the logits of the steps that are right for that image (`target` correct; an image
with no right step has no such term), or of all steps (`target` all). Targets carry no gradient.
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)), in nats.
"""

from __future__ import annotations

from torch import Tensor

from tser_cli.config import MethodConfig
from tser_cli.losses.base import Outputs, Terms, step_cross_entropy, step_kl
from tser_cli.losses.functional import kl_per_image


def ensemble(logits_TNK: Tensor, labels_N: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """zhat [N, K] and, [N], whether the image has one."""
    right_TN = logits_TNK.argmax(-1) == labels_N
    used_TN = right_TN if target == "correct" else right_TN.new_ones(right_TN.shape)
    count_N = used_TN.sum(0)
    total_NK = (logits_TNK.detach() * used_TN.unsqueeze(-1)).sum(0)
    return total_NK / count_N.clamp_min(1).unsqueeze(-1), count_N > 0


def self_distillation(outputs: Outputs, target: str, temperature: float) -> Tensor:
    """tau^2 mean_n mean_t KL_tau(zhat, z_t), 0 for images without a target."""
    target_NK, has_N = ensemble(outputs.logits_TNK, outputs.labels_N, target)
    kl_TN = kl_per_image(target_NK.expand_as(outputs.logits_TNK), outputs.logits_TNK, temperature)
    return temperature**2 * (kl_TN * has_N).mean()


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Cross entropy, the teacher's KL and the ensemble's KL, all at every step."""
    tau = settings.temperature
    ce, kd = step_cross_entropy(outputs), tau**2 * step_kl(outputs, tau)
    own = self_distillation(outputs, settings.target, tau)
    total = settings.ce_weight * ce + settings.alpha * kd + settings.beta * own
    return {"loss": total, "ce": ce, "kd": kd, "self": own}
