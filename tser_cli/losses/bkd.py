"""`bkd`: blurred knowledge distillation (BKDSNN, Xu et al., ECCV 2024).

The last stage's features of the student, averaged over time, are aligned by a 1 x 1 convolution
where the channels differ, 15 % of their channels are masked, and conv-ReLU-conv rebuilds the
teacher's: L_f = mean squared error over the values of the map. An image's logits count the more the
further the student is from the teacher: w_n = 1 - exp(-CE(zbar_n, y_n) / (CE(z_A,n, y_n) + 1e-7)),
without gradient.
L = ce_weight CE(zbar, y) + kd_weight tau^2 mean_n w_n KL_tau(z_A,n, zbar_n) + feature_weight L_f,
with zbar = mean_t z_t [N, K] and tau = 2.

The authors' code (github.com/Intelligent-Computing-Research-Group/BKDSNN) weights the sum over the
C H W values of a map: by 2e-3 on CIFAR10-DVS (SEW-ResNet, 128 x 8 x 8 values, which is 16.384 of
their mean, the default here) and by 7e-5 on ImageNet (SEW-ResNet-18, 512 x 7 x 7: 1.756). The mean
makes the strength independent of the map's size. Their logit term is the cross entropy with the
soft target in place of the KL: the same gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tser_cli.losses import base
from tser_cli.losses.base import Distilling, Outputs, Shape, Terms
from tser_cli.settings.fields import NonNegative

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_CE = 1e-7  # the authors': a teacher that is sure and right would divide by 0


class Settings(Distilling):
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


def make_adapters(student: list[Shape], teacher: list[Shape]) -> nn.Module:
    """Return the blur of the last stage."""
    from tser_cli.losses.adapters import Blur, check_maps

    check_maps("the last stage", student[-1], teacher[-1])
    return Blur(student[-1][0], teacher[-1][0])


def distance_weights(student_NK: Tensor, teacher_NK: Tensor, target: Tensor) -> Tensor:
    """w_n = 1 - exp(-CE_s / CE_t) in 0..1, [N], without gradient: 0 for one without error."""
    from torch.nn import functional as F

    ours = F.cross_entropy(student_NK.detach(), target, reduction="none")
    theirs = F.cross_entropy(teacher_NK.detach(), target, reduction="none")
    return 1 - (-ours / (theirs + SMALLEST_CE)).exp()


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy, the weighted logits' term, and the rebuilt features' error."""
    features, tau = base.stage_features(outputs), settings.temperature
    # a mean, where the authors sum: so the weight does not depend on the size of the map
    error = (features.student[-1] - features.teacher[-1]).square().mean()
    ce = base.mean_cross_entropy(outputs, settings)
    student, teacher = base.time_mean(outputs.logits_TNK), base.teacher_logits(outputs)
    weights_N = distance_weights(student, teacher, outputs.target)
    kd = tau**2 * (weights_N * base.kl_per_image(teacher, student, tau)).mean()
    total = settings.ce_weight * ce + settings.kd_weight * kd + settings.feature_weight * error
    return {"loss": total, "ce": ce, "kd": kd, "feature": error}
