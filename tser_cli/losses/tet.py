"""`tet`: temporal efficient training (Deng et al., ICLR 2022), no teacher.

L = (1 - lam) mean_t CE(z_t, y) + lam mean_t MSE(z_t, 1): every step is trained by itself, and the
logits are held near a constant.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tser_cli.config import MethodConfig
from tser_cli.losses.base import Outputs, Terms, step_cross_entropy


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Cross entropy at every step, and the squared distance of all logits from 1."""
    ce = step_cross_entropy(outputs)
    error = F.mse_loss(outputs.logits_TNK, torch.ones_like(outputs.logits_TNK))
    total = settings.ce_weight * (1 - settings.lam) * ce + settings.lam * error
    return {"loss": total, "ce": ce, "mse": error}
