"""Methods beside the ladder that train every time step by itself: `tet`, `dkd`, `tsd`, `seal`.

tet needs no teacher, dkd distils from one at each step, and in tsd and seal the steps teach one
another as well. As in the ladder z_t are the student's logits (t = 1..T), z_A the teacher's, y the
labels, H the entropy, and KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)) in nats.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from tser_cli.losses import base
from tser_cli.losses.base import Distilling, Outputs, Supervised, Terms
from tser_cli.settings.fields import Fraction, NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


class TetSettings(Supervised):
    """The settings of `tet`: `lam` is the share of the squared distance of all logits from 1."""

    summary: ClassVar[str] = "cross entropy at every step, logits held near 1; no teacher"
    source: ClassVar[str] = "Deng et al., ICLR 2022, arXiv 2202.11946"
    needs_teacher: ClassVar[bool] = False

    name: str = "tet"
    lam: Fraction = 1e-3


def tet(outputs: Outputs, settings: TetSettings) -> Terms:
    """Temporal efficient training (Deng et al., ICLR 2022): logits are held near a constant.

    L = (1 - lam) mean_t CE(z_t, y) + lam mean_t MSE(z_t, 1). lam is 1e-3 in the authors'
    main_training_parallel.py (github.com/Gus-Lab/temporal_efficient_training); `ce_weight` scales
    the first term.
    """
    ce = base.step_cross_entropy(outputs, settings)
    error = (outputs.logits_TNK - 1).square().mean()
    total = settings.ce_weight * (1 - settings.lam) * ce + settings.lam * error
    return {"loss": total, "ce": ce, "mse": error}


class DkdSettings(Distilling):
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


def dkd(outputs: Outputs, settings: DkdSettings) -> Terms:
    """Decoupled distillation (Zhao et al., CVPR 2022) at every time step.

    With p the softmax at tau, b = (p_y, 1 - p_y), and q the softmax over the classes other than y:
    L = ce_weight mean_t CE(z_t, y)
        + w(e) kd_weight tau^2 mean_t (alpha KL(b_A || b_t) + beta KL(q_A || q_t)),
    w(e) = min(e / kd_warmup_epochs, 1) in the e-th epoch from 1 on; 1 where that setting is 0.

    The defaults are those of the authors' CIFAR configurations (DKD.py and cfg.py of
    github.com/megvii-research/mdistiller). Their beta depends on the pair (2, 6 or 8 on CIFAR-100);
    on ImageNet, ResNet-34 to ResNet-18, it is 0.5 with tau 1 and one epoch of warm-up.
    """
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


class TsdSettings(Supervised):
    """The settings of `tsd`.

    `alpha` scales the teacher's term, `beta` that of the student's own right steps; `target` and
    `no_right_step` say what the latter learns from.
    """

    summary: ClassVar[str] = "ts, with the mean of the right steps as a second teacher"
    source: ClassVar[str] = "temporal decoupling, ICML 2025, arXiv 2501.15925"

    name: str = "tsd"
    temperature: Positive = 3.0
    alpha: NonNegative = 0.2
    beta: NonNegative = 0.5
    target: Literal["correct", "all"] = "correct"
    no_right_step: Literal["uniform", "skip"] = "uniform"


def tsd(outputs: Outputs, settings: TsdSettings) -> Terms:
    """Temporal separation with self-distillation (Yu et al., ICML 2025).

    L = ce_weight mean_t CE(z_t, y) + alpha tau^2 mean_t KL_tau(z_A, z_t)
        + beta tau^2 mean_t KL_tau(zhat, z_t), tau = 3.
    zhat: the mean of the logits of the steps that are right for that image (`target` correct), or
    of all steps (`target` all). Targets carry no gradient.

    As in the authors' code (make_teacher, github.com/Intelli-Chip-Lab/
    snn_temporal_decoupling_distillation) an image with no right step has zero logits as its target,
    and is pulled towards equal probabilities; with `no_right_step` skip it has no such term. Their
    tau is 3 on CIFAR and 1 on ImageNet; alpha 0.2 and beta 0.5 are those of the commands in their
    readme.
    """
    tau = settings.temperature
    ce, kd = base.step_cross_entropy(outputs, settings), tau**2 * base.step_kl(outputs, tau)
    own = self_distillation(outputs, settings)
    total = settings.ce_weight * ce + settings.alpha * kd + settings.beta * own
    return {"loss": total, "ce": ce, "kd": kd, "self": own}


def self_distillation(outputs: Outputs, settings: TsdSettings) -> Tensor:
    """tau^2 mean_n mean_t KL_tau(zhat, z_t)."""
    tau, logits_TNK = settings.temperature, outputs.logits_TNK
    target_NK, has_N = ensemble(logits_TNK, outputs.labels_N, settings.target)
    # one target for all steps: each is drawn to where the right ones agree
    kl_TN = base.kl_per_image(target_NK.expand_as(logits_TNK), logits_TNK, tau)
    if settings.no_right_step == "skip":
        # a skipped image stays in the mean, as 0: else few right ones would weigh more
        kl_TN = kl_TN * has_N
    return tau**2 * kl_TN.mean()


def ensemble(logits_TNK: Tensor, labels_N: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """zhat [N, K], and whether a step went into it [N]; else its logits are all 0."""
    right_TN = logits_TNK.argmax(-1) == labels_N
    used_TN = right_TN if target == "correct" else right_TN.new_ones(right_TN.shape)
    count_N = used_TN.sum(0)
    total_NK = (logits_TNK.detach() * used_TN.unsqueeze(-1)).sum(0)
    # at least 1: where no step is right the sum is 0 already, and 0 / 0 would be no number
    return total_NK / count_N.clamp_min(1).unsqueeze(-1), count_N > 0


class SealSettings(Supervised):
    """The settings of `seal`: `alpha` scales ELA, `beta` STA, `temperature` softens both."""

    summary: ClassVar[str] = "errors levelled before the KL, and each step taught by the others"
    source: ClassVar[str] = "SEAL, 2026, arXiv 2605.14252"

    name: str = "seal"
    temperature: Positive = 3.0
    alpha: NonNegative = 0.6
    beta: NonNegative = 0.15


def seal(outputs: Outputs, settings: SealSettings) -> Terms:
    """Error-aware logits and a target of the steps' own (arXiv 2605.14252).

    L = ce_weight mean_t CE(z_t, y) + alpha ELA + beta STA, alpha 0.6, beta 0.15.
    ELA: where step t is wrong, with the wrong class w, copies are compared: the student's logit of
    w is set to that of y, and both of the teacher's logits of w and y to the smaller; then
    tau^2 mean_t KL_tau(teacher's copy, student's copy), tau = 3.
    STA: the target of step i is sum_j W_ij z_j with W_i = softmax over j != i of
    conf_j cos(z_i, z_j), conf = 1 - H / log K; tau^2 mean_i KL_tau(target_i, z_i). Targets and W
    are detached; 0 at T = 1.
    """
    steps, tau = outputs.logits_TNK.shape[0], settings.temperature
    ce = base.step_cross_entropy(outputs, settings)
    student, teacher = aligned_copies(
        outputs.logits_TNK.flatten(0, 1),
        base.teacher_logits(outputs).detach().repeat(steps, 1),
        outputs.labels_N.repeat(steps),
    )
    ela = tau**2 * base.kl_per_image(teacher, student, tau).mean()
    sta = step_alignment(outputs.logits_TNK, tau)
    total = settings.ce_weight * ce + settings.alpha * ela + settings.beta * sta
    return {"loss": total, "ce": ce, "ela": ela, "sta": sta}


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


def step_alignment(logits_TNK: Tensor, temperature: float) -> Tensor:
    """STA: tau^2 times the mean KL of each step to its target; 0 at T = 1."""
    if len(logits_TNK) == 1:  # no other step to learn from; the column of metrics.csv stays
        return logits_TNK.new_zeros(())
    kl_TN = base.kl_per_image(step_targets(logits_TNK), logits_TNK, temperature)
    return temperature**2 * kl_TN.mean()


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
