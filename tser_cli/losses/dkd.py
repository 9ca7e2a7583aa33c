"""`dkd`: decoupled distillation (Zhao et al., CVPR 2022) at every time step.

With p the softmax at tau, b = (p_y, 1 - p_y), and q the softmax over the classes other than y:
L = ce_weight mean_t CE(z_t, y)
    + kd_weight tau^2 mean_t (alpha KL(b_A || b_t) + beta KL(q_A || q_t)).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tser_cli.config import MethodConfig
from tser_cli.losses.base import Outputs, Terms, step_cross_entropy, teacher_logits
from tser_cli.losses.functional import kl_per_image, log_probabilities

TINY = 1e-12


def target_kl(teacher: Tensor, student: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL of (p_y, 1 - p_y) of each row: [M, K] twice, [M] -> [M]."""
    log_t, log_s = (
        log_probabilities(logits, temperature).gather(1, labels[:, None])[:, 0]
        for logits in (teacher.detach(), student)
    )
    rest_t = (1 - log_t.exp()).clamp_min(TINY)
    rest_s = (1 - log_s.exp()).clamp_min(TINY)
    return log_t.exp() * (log_t - log_s) + rest_t * (rest_t.log() - rest_s.log())


def other_kl(teacher: Tensor, student: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL over the classes other than y of each row: [M, K] twice, [M] -> [M]."""
    others = torch.ones_like(teacher, dtype=torch.bool).scatter_(1, labels[:, None], False)
    shape = (len(labels), teacher.shape[1] - 1)
    return kl_per_image(teacher[others].view(shape), student[others].view(shape), temperature)


def loss(outputs: Outputs, settings: MethodConfig) -> Terms:
    """Cross entropy, the target class's term and the other classes' term at every step."""
    steps, tau = outputs.logits_TNK.shape[0], settings.temperature
    student = outputs.logits_TNK.flatten(0, 1)
    teacher, labels = teacher_logits(outputs).repeat(steps, 1), outputs.labels_N.repeat(steps)
    ce = step_cross_entropy(outputs)
    target = tau**2 * target_kl(teacher, student, labels, tau).mean()
    others = tau**2 * other_kl(teacher, student, labels, tau).mean()
    kd = settings.alpha * target + settings.beta * others
    return {
        "loss": settings.ce_weight * ce + settings.kd_weight * kd,
        "ce": ce,
        "target": target,
        "others": others,
    }
