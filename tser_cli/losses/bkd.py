"""`bkd`: blurred knowledge distillation (BKDSNN, Xu et al., ECCV 2024).

The last stage's features of the student, averaged over time, are aligned by a 1 x 1 convolution
where the channels differ, 15 % of their channels are masked, and conv-ReLU-conv rebuilds the
teacher's: L_f = sum of squared errors / N. The logits' term is weighted by how far the student is
from the teacher: w = 1 - exp(-CE(zbar, y) / CE(z_A, y)), without gradient.
L = ce_weight CE(zbar, y) + kd_weight w tau^2 KL_tau(z_A, zbar) + feature_weight L_f.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tser_cli.config import MethodConfig
from tser_cli.losses.adapters import check_stages
from tser_cli.losses.base import (
    Outputs,
    Shape,
    Terms,
    mean_cross_entropy,
    mean_kl,
    stage_features,
    teacher_logits,
)
from tser_cli.losses.functional import cross_entropy

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
    check_stages(student[-1:], teacher[-1:])
    return Blur(student[-1][0], teacher[-1][0])


def distance_weight(student_ce: Tensor, teacher_ce: Tensor) -> Tensor:
    """w = 1 - exp(-CE_s / CE_t) in 0..1, without gradient: 0 for a student without error."""
    ratio = student_ce.detach() / teacher_ce.detach().clamp_min(SMALLEST_CE)
    return 1 - torch.exp(-ratio)


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Cross entropy, the weighted logits' term, and the rebuilt features' error."""
    features = stage_features(outputs)
    error = (features.student[-1] - features.teacher[-1]).square().sum() / len(outputs.labels_N)
    ce = mean_cross_entropy(outputs)
    weight = distance_weight(ce, cross_entropy(teacher_logits(outputs), outputs.labels_N))
    kd = weight * settings.temperature**2 * mean_kl(outputs, settings.temperature)
    total = settings.ce_weight * ce + settings.kd_weight * kd + settings.feature_weight * error
    return {"loss": total, "ce": ce, "kd": kd, "feature": error}
