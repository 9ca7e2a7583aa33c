"""Methods that compare the stages' features: `feature`, `kd_feature` and `bkd`.

zbar is the mean over time of the student's logits, z_A the teacher's logits, y the labels. The
student's features are averaged over time and pass through adapters that train with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tser_cli.losses import base
from tser_cli.losses.base import Distilling, Outputs, Shape, Supervised, Terms
from tser_cli.losses.ladder import KdSettings, kd
from tser_cli.settings.fields import NonNegative

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_CE = 1e-7  # bkd's authors': a teacher that is sure and right would divide by 0


class FeatureSettings(Supervised):
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


def feature(outputs: Outputs, settings: FeatureSettings) -> Terms:
    """Cross entropy, and the teacher's features as targets, after FitNets (Romero et al., 2015).

    L = ce_weight CE(zbar, y) + feature_weight mean_i MSE(A_i(mean_t f_i,t), F_i), with f_i,t the
    student's features [N, C, H, W] of stage i at step t, F_i the teacher's, and A_i a 3 x 3
    convolution with batch norm. The weight, 100, is FEAT_WEIGHT of FitNet in
    github.com/megvii-research/mdistiller, where it multiplies the mean squared error of one stage;
    here it multiplies the stages' mean.
    """
    ce, error = base.mean_cross_entropy(outputs, settings), feature_error(outputs)
    total = settings.ce_weight * ce + settings.feature_weight * error
    return {"loss": total, "ce": ce, "feature": error}


class KdFeatureSettings(KdSettings, FeatureSettings):
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


def make_adapters(student: list[Shape], teacher: list[Shape]) -> nn.Module:
    """Return the adapters of `feature` and `kd_feature`."""
    from tser_cli.losses import adapters

    return adapters.stage_convolutions(student, teacher)


def feature_error(outputs: Outputs) -> Tensor:
    """Mean over the stages of the mean squared error of the adapted features."""
    import torch
    from torch.nn import functional as F

    features = base.stage_features(outputs)
    # a mean, so that a network of more stages does not weigh its features more
    pairs = zip(features.student, features.teacher, strict=True)
    return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs]).mean()


class BkdSettings(Distilling):
    """The settings of `bkd`: `feature_weight` scales the mean squared error of the features."""

    summary: ClassVar[str] = (
        "blurred features of the last stage, and logits weighted by the student's error"
    )
    source: ClassVar[str] = "Xu et al. (BKDSNN), ECCV 2024, arXiv 2407.09083"
    deviations: ClassVar[str] = (
        "the features' weight multiplies a mean, theirs a sum: 16.384 is their 2e-3 on 128 x 8 x 8 "
        "values (CIFAR10-DVS), 1.756 their 7e-5 on 512 x 7 x 7 (ImageNet); KL in place of the soft "
        "cross entropy, which has the same gradient"
    )
    separated: ClassVar[bool] = False

    name: str = "bkd"
    feature_weight: NonNegative = 16.384


def bkd(outputs: Outputs, settings: BkdSettings) -> Terms:
    """Blurred knowledge distillation (BKDSNN, Xu et al., ECCV 2024).

    The last stage's features of the student, averaged over time, are aligned by a 1 x 1 convolution
    where the channels differ, 15 % of their channels are masked, and conv-ReLU-conv rebuilds the
    teacher's: L_f = mean squared error over the values of the map. An image's logits count the more
    the further the student is from the teacher:
    w_n = 1 - exp(-CE(zbar_n, y_n) / (CE(z_A,n, y_n) + 1e-7)), without gradient.
    L = ce_weight CE(zbar, y) + kd_weight tau^2 mean_n w_n KL_tau(z_A,n, zbar_n)
        + feature_weight L_f, tau = 2.

    The authors' code (github.com/Intelligent-Computing-Research-Group/BKDSNN) weights the sum over
    the C H W values of a map: by 2e-3 on CIFAR10-DVS (SEW-ResNet, 128 x 8 x 8 values, which is
    16.384 of their mean, the default here) and by 7e-5 on ImageNet (SEW-ResNet-18, 512 x 7 x 7:
    1.756). The mean makes the strength independent of the map's size. Their logit term is the cross
    entropy with the soft target in place of the KL: the same gradient.
    """
    features, tau = base.stage_features(outputs), settings.temperature
    error = (features.student[-1] - features.teacher[-1]).square().mean()
    ce = base.mean_cross_entropy(outputs, settings)
    student, teacher = outputs.logits_TNK.mean(0), base.teacher_logits(outputs)
    weights_N = distance_weights(student, teacher, outputs.labels_N)
    kd = tau**2 * (weights_N * base.kl_per_image(teacher, student, tau)).mean()
    total = settings.ce_weight * ce + settings.kd_weight * kd + settings.feature_weight * error
    return {"loss": total, "ce": ce, "kd": kd, "feature": error}


def make_blur(student: list[Shape], teacher: list[Shape]) -> nn.Module:
    """Return the adapter of `bkd`: the blur of the last stage."""
    from tser_cli.losses import adapters

    adapters.check_maps("the last stage", student[-1], teacher[-1])
    return adapters.Blur(student[-1][0], teacher[-1][0])


def distance_weights(student_NK: Tensor, teacher_NK: Tensor, labels_N: Tensor) -> Tensor:
    """w_n = 1 - exp(-CE_s / CE_t) in 0..1, [N], without gradient: 0 for one without error."""
    from torch.nn import functional as F

    ours = F.cross_entropy(student_NK.detach(), labels_N, reduction="none")
    theirs = F.cross_entropy(teacher_NK.detach(), labels_N, reduction="none")
    return 1 - (-ours / (theirs + SMALLEST_CE)).exp()
