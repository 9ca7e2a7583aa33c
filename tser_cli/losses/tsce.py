"""`tsce`: only the cross entropy separated over time (Yu et al., CVPR 2025, ablation).

L = ce_weight mean_t CE(z_t, y) + kd_weight tau^2 KL_tau(z_A, mean_t z_t).
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)), in nats.
"""

from __future__ import annotations

from typing import ClassVar

from tser_cli.losses.base import (
    Distilling,
    Outputs,
    Terms,
    distillation,
    mean_kl,
    step_cross_entropy,
)


class Settings(Distilling):
    """The settings of `tsce`."""

    summary: ClassVar[str] = "kd with the cross entropy at every time step"
    source: ClassVar[str] = "Yu et al., CVPR 2025, arXiv 2503.03144"

    name: str = "tsce"


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy at every time step, KL averaged."""
    return distillation(
        step_cross_entropy(outputs, settings), mean_kl(outputs, settings.temperature), settings
    )
