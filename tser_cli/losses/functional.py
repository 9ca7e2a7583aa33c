"""The terms that methods are made of: pure functions of logits.

z_t are the student's logits [T, N, K], one set a time step; z_A the teacher's [N, K]; y the
labels [N]. Targets never carry gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def time_mean(logits_TNK: Tensor) -> Tensor:
    """mean_t z_t: [T, N, K] -> [N, K]."""
    return logits_TNK.mean(0)


def cross_entropy(logits_NK: Tensor, labels_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """mean_n CE(z, y) in nats: [N, K], [N] -> scalar."""
    from torch.nn import functional as F

    return F.cross_entropy(logits_NK, labels_N, label_smoothing=label_smoothing)


def separated_cross_entropy(
    logits_TNK: Tensor, labels_N: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """TSCE = mean_n mean_t CE(z_t, y): [T, N, K], [N] -> scalar (Yu et al., CVPR 2025)."""
    steps = logits_TNK.shape[0]
    return cross_entropy(logits_TNK.flatten(0, 1), labels_N.repeat(steps), label_smoothing)


def kl_divergence(teacher_NK: Tensor, student_NK: Tensor, temperature: float) -> Tensor:
    """mean_n KL(softmax(z_A / tau) || softmax(z / tau)) in nats: [N, K] twice -> scalar.

    Without the factor tau^2 of Hinton et al. (2015); the methods multiply by it.
    """
    return kl_per_image(teacher_NK, student_NK, temperature).mean()


def separated_kl_divergence(teacher_NK: Tensor, student_TNK: Tensor, temperature: float) -> Tensor:
    """TSKL = mean_n mean_t KL(softmax(z_A / tau) || softmax(z_t / tau)) (Yu et al., CVPR 2025).

    [N, K], [T, N, K] -> scalar, in nats.
    """
    steps = student_TNK.shape[0]
    return kl_divergence(teacher_NK.repeat(steps, 1), student_TNK.flatten(0, 1), temperature)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(z) in nats: [..., K] -> [...]."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z / tau): [..., K] -> [..., K]."""
    return (logits / temperature).log_softmax(-1)


def kl_per_image(target: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(softmax(target / tau) || softmax(student / tau)) of each row: [..., K] twice -> [...]."""
    log_p = log_probabilities(target.detach(), temperature)
    return (log_p.exp() * (log_p - log_probabilities(student, temperature))).sum(-1)
