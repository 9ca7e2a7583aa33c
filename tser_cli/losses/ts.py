"""`ts`: temporal separation, both terms at every time step (Yu et al., CVPR 2025).

L = ce_weight mean_t CE(z_t, y) + kd_weight tau^2 mean_t KL_tau(z_A, z_t).
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)), in nats.
"""

from __future__ import annotations

from typing import ClassVar

from tser_cli.losses.base import (
    Distilling,
    Outputs,
    Terms,
    distillation,
    step_cross_entropy,
    step_kl,
)


class Settings(Distilling):
    """The settings of `ts`."""

    summary: ClassVar[str] = "cross entropy and KL at every time step"
    source: ClassVar[str] = "Yu et al., CVPR 2025, arXiv 2503.03144"

    name: str = "ts"


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy and KL at every time step."""
    return distillation(
        step_cross_entropy(outputs, settings), step_kl(outputs, settings.temperature), settings
    )
