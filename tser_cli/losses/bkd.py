"""`bkd`: blurred knowledge distillation (BKDSNN, Xu et al., ECCV 2024).

The last stage's features of the student, averaged over time, are aligned by a 1 x 1 convolution
where the channels differ, 15 % of their channels are masked, and conv-ReLU-conv rebuilds the
teacher's: L_f = sum of squared errors / N. An image's logits count the more the further the student
is from the teacher: w_n = 1 - exp(-CE(zbar_n, y_n) / CE(z_A,n, y_n)), without gradient.
L = ce_weight CE(zbar, y) + kd_weight tau^2 mean_n w_n KL_tau(z_A,n, zbar_n) + feature_weight L_f,
with zbar = mean_t z_t [N, K], tau = 2 and feature_weight = 7e-5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tser_cli.config import MethodConfig
from tser_cli.losses.adapters import check_last_stage
from tser_cli.losses.base import (
    Outputs,
    Shape,
    Terms,
    mean_cross_entropy,
    stage_features,
    teacher_logits,
)
from tser_cli.losses.functional import kl_per_image, time_mean

MASKED = 0.15
SMALLEST_CE = 1e-12


class Blur(nn.Module):
    """Align, mask channels while training, rebuild: the last stage's features [N, C, H, W]."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        same = student == teacher
        self.align = nn.Identity() if same else nn.Conv2d(student, teacher, 1)
        self.rebuild = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 3, padding=1),
        )

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = self.align(features[-1])
        if self.training:
            x = x * (torch.rand(*x.shape[:2], 1, 1, device=x.device) >= MASKED)
        return (*features[:-1], self.rebuild(x))


def make_adapters(student: list[Shape], teacher: list[Shape]) -> nn.Module:
    """The blur of the last stage."""
    check_last_stage(student, teacher)
    return Blur(student[-1][0], teacher[-1][0])


def distance_weights(student_NK: Tensor, teacher_NK: Tensor, labels_N: Tensor) -> Tensor:
    """w_n = 1 - exp(-CE_s / CE_t) in 0..1, [N], without gradient: 0 for one without error."""
    ours = F.cross_entropy(student_NK.detach(), labels_N, reduction="none")
    theirs = F.cross_entropy(teacher_NK.detach(), labels_N, reduction="none")
    return 1 - torch.exp(-ours / theirs.clamp_min(SMALLEST_CE))


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Cross entropy, the weighted logits' term, and the rebuilt features' error."""
    features, tau = stage_features(outputs), settings.temperature
    error = (features.student[-1] - features.teacher[-1]).square().sum() / len(outputs.labels_N)
    ce = mean_cross_entropy(outputs)
    student, teacher = time_mean(outputs.logits_TNK), teacher_logits(outputs)
    weights_N = distance_weights(student, teacher, outputs.labels_N)
    kd = tau**2 * (weights_N * kl_per_image(teacher, student, tau)).mean()
    total = settings.ce_weight * ce + settings.kd_weight * kd + settings.feature_weight * error
    return {"loss": total, "ce": ce, "kd": kd, "feature": error}
