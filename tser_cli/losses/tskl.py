"""`tskl`: only the KL term separated over time (Yu et al., CVPR 2025, ablation).

L = ce_weight CE(mean_t z_t, y) + kd_weight tau^2 mean_t KL_tau(z_A, z_t).
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)), in nats.
"""

from __future__ import annotations

from tser_cli.config import MethodConfig
from tser_cli.losses.base import Outputs, Terms, distillation, mean_cross_entropy, step_kl


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Cross entropy averaged, KL at every time step."""
    return distillation(
        mean_cross_entropy(outputs), step_kl(outputs, settings.temperature), settings
    )
