"""`ce`: the student alone, no teacher.

L = CE(mean_t z_t, y), with z_t [T, N, K] and y [N]; the usual training of an SNN.
"""

from __future__ import annotations

from tser_cli.config import MethodConfig
from tser_cli.losses.base import Outputs, Terms, mean_cross_entropy


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Cross entropy of the time-averaged logits; `ce_weight` scales it."""
    ce = mean_cross_entropy(outputs)
    return {"loss": settings.ce_weight * ce, "ce": ce}
