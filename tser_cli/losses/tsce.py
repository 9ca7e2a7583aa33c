"""`tsce`: only the cross entropy separated over time (Yu et al., CVPR 2025, ablation).

L = ce_weight mean_t CE(z_t, y) + kd_weight tau^2 KL_tau(z_A, mean_t z_t).
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)), in nats.
"""

from __future__ import annotations

from tser_cli.config import MethodConfig
from tser_cli.losses.base import Outputs, Terms, distillation, mean_kl, step_cross_entropy


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Cross entropy at every time step, KL averaged."""
    return distillation(
        step_cross_entropy(outputs), mean_kl(outputs, settings.temperature), settings
    )
