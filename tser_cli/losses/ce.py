"""`ce`: the student alone, no teacher.

L = CE(mean_t z_t, y), with z_t [T, N, K] and y [N]; the usual training of an SNN.
"""

from __future__ import annotations

from typing import ClassVar

from tser_cli.losses.base import Outputs, Supervised, Terms, mean_cross_entropy


class Settings(Supervised):
    """The settings of `ce`."""

    summary: ClassVar[str] = "cross entropy on the time-averaged logits; no teacher"
    source: ClassVar[str] = "baseline"
    needs_teacher: ClassVar[bool] = False
    separated: ClassVar[bool] = False

    name: str = "ce"


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy of the time-averaged logits; `ce_weight` scales it."""
    ce = mean_cross_entropy(outputs, settings)
    return {"loss": settings.ce_weight * ce, "ce": ce}
