"""`tskl`: only the KL term separated over time (Yu et al., CVPR 2025, ablation).

L = ce_weight CE(mean_t z_t, y) + kd_weight tau^2 mean_t KL_tau(z_A, z_t).
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)), in nats.
"""

from __future__ import annotations

from typing import ClassVar

from tser_cli.losses.base import (
    Distilling,
    Outputs,
    Terms,
    distillation,
    mean_cross_entropy,
    step_kl,
)


class Settings(Distilling):
    """The settings of `tskl`."""

    summary: ClassVar[str] = "kd with the KL term at every time step"
    source: ClassVar[str] = "Yu et al., CVPR 2025, arXiv 2503.03144"

    name: str = "tskl"


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy averaged, KL at every time step."""
    return distillation(
        mean_cross_entropy(outputs, settings), step_kl(outputs, settings.temperature), settings
    )
