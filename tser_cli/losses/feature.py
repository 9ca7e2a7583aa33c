"""`feature`: the teacher's features as targets, and `kd_feature`: the same with `kd`.

After FitNets (Romero et al., ICLR 2015):
L = ce_weight CE(zbar, y) + feature_weight mean_i MSE(A_i(mean_t f_i,t), F_i), with f_i,t the
student's features [N, C, H, W] of stage i at step t, F_i the teacher's, and A_i a 3 x 3 convolution
with batch norm. The weight, 100, is FEAT_WEIGHT of FitNet in github.com/megvii-research/mdistiller,
where it multiplies the mean squared error of one stage; here it multiplies the stages' mean.
`kd_feature`, the combination that the ladder's paper compares with, adds
kd_weight tau^2 KL_tau(z_A, zbar).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tser_cli.losses import base
from tser_cli.losses.base import Outputs, Shape, Supervised, Terms
from tser_cli.losses.ladder import KdSettings, kd
from tser_cli.settings.fields import NonNegative

if TYPE_CHECKING:
    from torch import Tensor, nn


class Settings(Supervised):
    """The settings of `feature`: `feature_weight` scales the features' error."""

    summary: ClassVar[str] = "cross entropy, and the teacher's features of every stage as targets"
    source: ClassVar[str] = "after Romero et al., ICLR 2015, arXiv 1412.6550"
    deviations: ClassVar[str] = (
        "mdistiller's FitNet compares one stage, through a 1 x 1 convolution, norm and ReLU; here "
        "it is the mean of all stages, through a 3 x 3 convolution and norm"
    )
    separated: ClassVar[bool] = False

    name: str = "feature"
    feature_weight: NonNegative = 100.0


def make_adapters(student: list[Shape], teacher: list[Shape]) -> nn.Module:
    """Return a 3 x 3 convolution and batch norm a stage, to the teacher's number of channels."""
    from tser_cli.losses.adapters import check_stages, stage_convolutions

    check_stages(student, teacher)
    return stage_convolutions(student, teacher)


def feature_error(outputs: Outputs) -> Tensor:
    """Mean over the stages of the mean squared error of the adapted features."""
    import torch
    from torch.nn import functional as F

    features = base.stage_features(outputs)
    # a mean, so that a network of more stages does not weigh its features more
    pairs = zip(features.student, features.teacher, strict=True)
    return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs]).mean()


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy of the mean logits, and the features' error."""
    ce, error = base.mean_cross_entropy(outputs, settings), feature_error(outputs)
    total = settings.ce_weight * ce + settings.feature_weight * error
    return {"loss": total, "ce": ce, "feature": error}


class KdFeatureSettings(KdSettings, Settings):
    """The settings of `kd_feature`: those of `kd` and of `feature`."""

    summary: ClassVar[str] = "kd and feature together"
    source: ClassVar[str] = "the combination that Yu et al., CVPR 2025, compare with"
    deviations: ClassVar[str] = "those of feature"

    name: str = "kd_feature"


def kd_feature(outputs: Outputs, settings: KdFeatureSettings) -> Terms:
    """Return the terms of `kd`, and the features' error."""
    found, error = kd(outputs, settings), feature_error(outputs)
    total = found["loss"] + settings.feature_weight * error
    return {**found, "loss": total, "feature": error}
