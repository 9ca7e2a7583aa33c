"""`feature`: the teacher's features as targets (after FitNets, Romero et al., ICLR 2015).

L = ce_weight CE(mean_t z_t, y) + feature_weight mean_i MSE(A_i(mean_t f_i,t), F_i), with f_i,t the
student's features [N, C, H, W] of stage i at step t, F_i the teacher's, and A_i a 3 x 3 convolution
with batch norm. The weight (100) is that of the mean over the stages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tser_cli.config import MethodConfig
from tser_cli.losses.adapters import StageAdapters, check_stages
from tser_cli.losses.base import Outputs, Shape, Terms, mean_cross_entropy, stage_features


def make_adapters(student: list[Shape], teacher: list[Shape]) -> nn.Module:
    """A 3 x 3 convolution and batch norm a stage, to the teacher's number of channels."""
    check_stages(student, teacher)
    return StageAdapters(
        nn.Sequential(
            nn.Conv2d(ours[0], theirs[0], 3, padding=1, bias=False), nn.BatchNorm2d(theirs[0])
        )
        for ours, theirs in zip(student, teacher, strict=True)
    )


def feature_error(outputs: Outputs) -> Tensor:
    """Mean over the stages of the mean squared error of the adapted features."""
    features = stage_features(outputs)
    pairs = zip(features.student, features.teacher, strict=True)
    return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs]).mean()


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Cross entropy of the mean logits, and the features' error."""
    ce, error = mean_cross_entropy(outputs), feature_error(outputs)
    total = settings.ce_weight * ce + settings.feature_weight * error
    return {"loss": total, "ce": ce, "feature": error}
