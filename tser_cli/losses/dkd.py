"""`dkd`: decoupled distillation (Zhao et al., CVPR 2022) at every time step.

With p the softmax at tau, b = (p_y, 1 - p_y), and q the softmax over the classes other than y:
L = ce_weight mean_t CE(z_t, y)
    + w(e) kd_weight tau^2 mean_t (alpha KL(b_A || b_t) + beta KL(q_A || q_t)),
w(e) = min(e / kd_warmup_epochs, 1) in the e-th epoch from 1 on; 1 where that setting is 0.

The defaults are those of the authors' CIFAR configurations (DKD.py and cfg.py of
github.com/megvii-research/mdistiller). Their beta depends on the pair (2, 6 or 8 on CIFAR-100); on
ImageNet, ResNet-34 to ResNet-18, it is 0.5 with tau 1 and one epoch of warm-up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from tser_cli.losses import base
from tser_cli.losses.base import Distilling, Outputs, Terms
from tser_cli.settings.fields import NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


class Settings(Distilling):
    """The settings of `dkd`.

    `alpha` scales the term of the target class, `beta` that of the others; both rise over the first
    `kd_warmup_epochs`, which a training of fewer than the authors' 240 epochs may want shorter.
    """

    summary: ClassVar[str] = "target and other classes distilled apart, at every step"
    source: ClassVar[str] = "Zhao et al., CVPR 2022, arXiv 2203.08679"
    deviations: ClassVar[str] = "taken at every time step (theirs is for networks without time)"

    name: str = "dkd"
    temperature: Positive = 4.0
    alpha: NonNegative = 1.0
    beta: NonNegative = 8.0
    kd_warmup_epochs: NonNegative = 20.0


def target_kl(teacher: Tensor, student: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL of (p_y, 1 - p_y) of each row: [M, K] twice, [M] -> [M]."""
    theirs = target_and_rest(teacher.detach(), labels, temperature)
    ours = target_and_rest(student, labels, temperature)
    return (theirs.exp() * (theirs - ours)).sum(0)


def target_and_rest(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """log p_y and log (1 - p_y) of each row: [M, K], [M] -> [2, M].

    The second is summed from the others' logarithms: 1 - p_y itself is 0 for a row that is sure.
    """
    import torch

    log_p = base.log_probabilities(logits, temperature)
    target = labels[:, None]
    rest = log_p.scatter(1, target, -math.inf).logsumexp(1)
    return torch.stack([log_p.gather(1, target)[:, 0], rest])


def other_kl(teacher: Tensor, student: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL over the classes other than y of each row: [M, K] twice, [M] -> [M]."""
    # each row loses exactly one class, so that the rest is a matrix again
    others = teacher.new_ones(teacher.shape).bool().scatter_(1, labels[:, None], False)
    shape = (len(labels), teacher.shape[1] - 1)
    return base.kl_per_image(teacher[others].view(shape), student[others].view(shape), temperature)


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Cross entropy, the target class's term and the other classes' term at every step."""
    steps, tau = outputs.logits_TNK.shape[0], settings.temperature
    student = outputs.logits_TNK.flatten(0, 1)
    teacher, labels = base.teacher_logits(outputs).repeat(steps, 1), outputs.labels_N.repeat(steps)
    ce = base.step_cross_entropy(outputs, settings)
    target = tau**2 * target_kl(teacher, student, labels, tau).mean()
    others = tau**2 * other_kl(teacher, student, labels, tau).mean()
    kd = settings.alpha * target + settings.beta * others
    epoch, epochs = outputs.progress.epoch, settings.kd_warmup_epochs  # the epoch is from 0 on
    warmed = min((epoch + 1) / epochs, 1.0) if epochs else 1.0
    total = settings.ce_weight * ce + warmed * settings.kd_weight * kd
    return {"loss": total, "ce": ce, "target": target, "others": others}
