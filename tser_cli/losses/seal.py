"""`seal`: error-aware logits and a target of the steps' own (arXiv 2605.14252).

L = ce_weight mean_t CE(z_t, y) + alpha ELA + beta STA, alpha 0.6, beta 0.15.
ELA: where step t is wrong, with the wrong class w, copies are compared: the student's logit of w is
set to that of y, and both of the teacher's logits of w and y to the smaller; then
tau^2 mean_t KL_tau(teacher's copy, student's copy), tau = 3.
STA: the target of step i is sum_j W_ij z_j with W_i = softmax over j != i of conf_j cos(z_i, z_j),
conf = 1 - H / log K; tau^2 mean_i KL_tau(target_i, z_i). Targets and W are detached; 0 at T = 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from tser_cli.losses import base
from tser_cli.losses.base import Outputs, Supervised, Terms
from tser_cli.settings.fields import NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


class Settings(Supervised):
    """The settings of `seal`: `alpha` scales ELA, `beta` STA, `temperature` softens both."""

    summary: ClassVar[str] = "errors levelled before the KL, and each step taught by the others"
    source: ClassVar[str] = "SEAL, 2026, arXiv 2605.14252"

    name: str = "seal"
    temperature: Positive = 3.0
    alpha: NonNegative = 0.6
    beta: NonNegative = 0.15


def aligned_copies(
    student_MK: Tensor, teacher_MK: Tensor, labels_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Copies of both logits with the wrong class levelled with the true one, where wrong."""
    import torch

    true, said = labels_M[:, None], student_MK.detach().argmax(-1, keepdim=True)
    wrong = said != true
    # levelled, not masked: the student's gradient then goes to the true class
    level_s = torch.where(wrong, student_MK.gather(1, true), student_MK.gather(1, said))
    student = student_MK.scatter(1, said, level_s)
    pair = torch.cat([teacher_MK.gather(1, true), teacher_MK.gather(1, said)], dim=1)
    level_t = torch.where(wrong, pair.amin(1, keepdim=True), pair[:, :1])
    teacher = teacher_MK.scatter(1, true, level_t)
    level_t = torch.where(wrong, level_t, pair[:, 1:])
    return student, teacher.scatter(1, said, level_t)


def error_aware(outputs: Outputs, temperature: float) -> Tensor:
    """ELA: tau^2 times the mean KL between the aligned copies."""
    steps = outputs.logits_TNK.shape[0]
    student, teacher = aligned_copies(
        outputs.logits_TNK.flatten(0, 1),
        base.teacher_logits(outputs).detach().repeat(steps, 1),
        outputs.labels_N.repeat(steps),
    )
    return temperature**2 * base.kl_per_image(teacher, student, temperature).mean()


def step_targets(logits_TNK: Tensor) -> Tensor:
    """Return the target of each step from the others, [T, N, K]; T is at least 2."""
    import torch
    from torch.nn import functional as F

    z = logits_TNK.detach().transpose(0, 1)
    confidence_NT = 1 - base.entropy(z) / math.log(z.shape[-1])
    cosine_NTT = F.cosine_similarity(z.unsqueeze(2), z.unsqueeze(1), dim=-1)
    # own steps get no weight: a step would learn from itself most of all
    score_NTT = confidence_NT.unsqueeze(1) * cosine_NTT
    own = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    weight_NTT = score_NTT.masked_fill(own, -math.inf).softmax(-1)
    return (weight_NTT @ z).transpose(0, 1)


def step_alignment(outputs: Outputs, temperature: float) -> Tensor:
    """STA: tau^2 times the mean KL of each step to its target; 0 at T = 1."""
    logits = outputs.logits_TNK
    if logits.shape[0] == 1:  # no other step to learn from; the column of metrics.csv stays
        return logits.new_zeros(())
    return temperature**2 * base.kl_per_image(step_targets(logits), logits, temperature).mean()


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy at every step, ELA and STA."""
    ce = base.step_cross_entropy(outputs, settings)
    ela = error_aware(outputs, settings.temperature)
    sta = step_alignment(outputs, settings.temperature)
    total = settings.ce_weight * ce + settings.alpha * ela + settings.beta * sta
    return {"loss": total, "ce": ce, "ela": ela, "sta": sta}
