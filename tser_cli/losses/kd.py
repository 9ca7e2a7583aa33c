"""`kd`: classical distillation on the time-averaged logits (Hinton et al., 2015).

L = ce_weight CE(zbar, y) + kd_weight tau^2 KL_tau(z_A, zbar),
with zbar = mean_t z_t [N, K].
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)), in nats.
"""

from __future__ import annotations

from tser_cli.config import MethodConfig
from tser_cli.losses.base import Outputs, Terms, distillation, mean_cross_entropy, mean_kl


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Both terms averaged over time before the loss."""
    return distillation(
        mean_cross_entropy(outputs), mean_kl(outputs, settings.temperature), settings
    )
