"""`kd`: classical distillation on the time-averaged logits (Hinton et al., 2015).

L = ce_weight CE(zbar, y) + kd_weight tau^2 KL_tau(z_A, zbar),
with zbar = mean_t z_t [N, K].
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
    mean_kl,
)


class Settings(Distilling):
    """The settings of `kd`."""

    summary: ClassVar[str] = "cross entropy and KL on the time-averaged logits"
    source: ClassVar[str] = "Hinton et al., 2015, arXiv 1503.02531"
    separated: ClassVar[bool] = False

    name: str = "kd"


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Both terms averaged over time before the loss."""
    return distillation(
        mean_cross_entropy(outputs, settings), mean_kl(outputs, settings.temperature), settings
    )
