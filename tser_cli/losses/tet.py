"""`tet`: temporal efficient training (Deng et al., ICLR 2022), no teacher.

L = (1 - lam) mean_t CE(z_t, y) + lam mean_t MSE(z_t, 1): every step is trained by itself, and the
logits are held near a constant. lam is 1e-3 in the authors' main_training_parallel.py
(github.com/Gus-Lab/temporal_efficient_training); `ce_weight` scales the first term.
"""

from __future__ import annotations

from typing import ClassVar

from tser_cli.losses import base
from tser_cli.losses.base import Outputs, Supervised, Terms
from tser_cli.settings.fields import Fraction


class Settings(Supervised):
    """The settings of `tet`: `lam` is the share of the squared distance of all logits from 1."""

    summary: ClassVar[str] = "cross entropy at every step, logits held near 1; no teacher"
    source: ClassVar[str] = "Deng et al., ICLR 2022, arXiv 2202.11946"
    needs_teacher: ClassVar[bool] = False

    name: str = "tet"
    lam: Fraction = 1e-3


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy at every step, and the squared distance of all logits from 1."""
    ce = base.step_cross_entropy(outputs, settings)
    error = (outputs.logits_TNK - 1).square().mean()
    total = settings.ce_weight * (1 - settings.lam) * ce + settings.lam * error
    return {"loss": total, "ce": ce, "mse": error}
