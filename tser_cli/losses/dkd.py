"""`dkd`: decoupled distillation (Zhao et al., CVPR 2022) at every time step.

With p the softmax at tau, b = (p_y, 1 - p_y), and q the softmax over the classes other than y:
L = ce_weight mean_t CE(z_t, y)
    + kd_weight tau^2 mean_t (alpha KL(b_A || b_t) + beta KL(q_A || q_t)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tser_cli.config import MethodConfig
from tser_cli.losses.base import Outputs, Terms, step_cross_entropy, teacher_logits
from tser_cli.losses.functional import kl_per_image, log_probabilities


def target_kl(teacher: Tensor, student: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL of (p_y, 1 - p_y) of each row: [M, K] twice, [M] -> [M]."""
    theirs = target_and_rest(teacher.detach(), labels, temperature)
    ours = target_and_rest(student, labels, temperature)
    return (theirs.exp() * (theirs - ours)).sum(0)


def target_and_rest(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """log p_y and log (1 - p_y) of each row: [M, K], [M] -> [2, M].

    The second is summed from the others' logarithms: 1 - p_y itself is 0 for a row that is sure.
    """
    log_p = log_probabilities(logits, temperature)
    target = labels[:, None]
    rest = log_p.scatter(1, target, -math.inf).logsumexp(1)
    return torch.stack([log_p.gather(1, target)[:, 0], rest])


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
