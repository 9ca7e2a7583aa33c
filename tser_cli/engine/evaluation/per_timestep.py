"""Evaluation at every time step in one pass, from integer counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.engine.runtime.processes import Runtime
from tser_cli.losses.functional import entropy
from tser_cli.models import Classifier


@dataclass(frozen=True)
class Evaluation:
    """Counts over a split; element t - 1 is time step t. Sums are in nats (loss, entropy)."""

    images: int
    correct_at: list[int]
    correct_cumulative: list[int]
    loss_sum: list[float]
    entropy_sum: list[float]
    confidence_sum: list[float]
    teacher_correct: int | None = None

    @property
    def timesteps(self) -> int:
        """The number of time steps that were evaluated."""
        return len(self.correct_at)

    @property
    def accuracy(self) -> float:
        """Accuracy of the time-averaged logits, as papers report it."""
        return self.correct_cumulative[-1] / self.images

    @property
    def teacher_accuracy(self) -> float | None:
        """The teacher's accuracy on the same images, None without a teacher."""
        return None if self.teacher_correct is None else self.teacher_correct / self.images

    def rows(self) -> list[dict[str, Any]]:
        """One dict a time step, with the numeric columns of per_timestep.csv."""
        return [
            {
                "timesteps": self.timesteps,
                "t": t + 1,
                "accuracy_at_t": self.correct_at[t] / self.images,
                "accuracy_cumulative": self.correct_cumulative[t] / self.images,
                "correct_at_t": self.correct_at[t],
                "correct_cumulative": self.correct_cumulative[t],
                "images": self.images,
                "loss_at_t": self.loss_sum[t] / self.images,
                "entropy_at_t": self.entropy_sum[t] / self.images,
                "confidence_at_t": self.confidence_sum[t] / self.images,
                "teacher_accuracy": self.teacher_accuracy,
            }
            for t in range(self.timesteps)
        ]


def cumulative_mean(logits_TNK: Tensor) -> Tensor:
    """Mean of the logits of steps 1..t, for every t: [T, N, K] -> [T, N, K]."""
    steps = torch.arange(1, logits_TNK.shape[0] + 1, device=logits_TNK.device)
    return logits_TNK.cumsum(0) / steps.view(-1, 1, 1)


def count_batch(logits_TNK: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [2, T] (right at t, right on the cumulative mean) and float64 sums [3, T].

    The sums are over images: cross entropy, entropy and confidence (the largest probability).
    """
    logits_TNK = logits_TNK.double()
    right_TN = logits_TNK.argmax(-1) == labels_N
    right_cumulative_TN = cumulative_mean(logits_TNK).argmax(-1) == labels_N
    steps = logits_TNK.shape[0]
    losses = F.cross_entropy(
        logits_TNK.flatten(0, 1), labels_N.repeat(steps), reduction="none"
    ).view(steps, -1)
    confidence = logits_TNK.softmax(-1).amax(-1)
    counts = torch.stack([right_TN.sum(1), right_cumulative_TN.sum(1)])
    sums = torch.stack([losses.sum(1), entropy(logits_TNK).sum(1), confidence.sum(1)])
    return counts, sums


def logits_of(model: Classifier, images_NCHW: Tensor, timesteps: int) -> Tensor:
    """[T, N, K] of an SNN; an ANN's logits count as one time step."""
    logits: Tensor = model(images_NCHW, timesteps)
    return logits if model.spiking else logits.unsqueeze(0)


@torch.inference_mode()
def evaluate(
    model: Classifier,
    loader: Iterable[Any],
    runtime: Runtime,
    timesteps: int,
    teacher: Classifier | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluate all time steps of `model` in one pass over `loader`.

    Every image counts once over all processes. `after_batch` is called with the number of images
    of each batch (progress, or a request to stop), and as often in every process: with 0 where
    another one has more batches. The model's mode is put back afterwards.
    """
    was_training = model.training
    model.eval()
    steps = timesteps if model.spiking else 1
    counts = torch.zeros(2, steps, dtype=torch.int64, device=runtime.device)
    sums = torch.zeros(3, steps, dtype=torch.float64, device=runtime.device)
    seen = torch.zeros(2, dtype=torch.int64, device=runtime.device)
    missing = runtime.largest(length_hint(loader)) - length_hint(loader)
    for batch in loader:
        images, labels = runtime.images(batch.images_NCHW), batch.labels_N.to(runtime.device)
        with runtime.autocast():
            logits_TNK = logits_of(model, images, steps)
            taught = None if teacher is None else teacher(images)
        batch_counts, batch_sums = count_batch(logits_TNK, labels)
        counts += batch_counts
        sums += batch_sums
        seen[0] += len(labels)
        if taught is not None:
            seen[1] += (taught.argmax(-1) == labels).sum()
        if after_batch:
            after_batch(len(labels))
    for _ in range(missing):
        if after_batch:
            after_batch(0)
    model.train(was_training)
    counts, sums, seen = runtime.sum(counts), runtime.sum(sums), runtime.sum(seen)
    return Evaluation(
        images=int(seen[0]),
        correct_at=counts[0].tolist(),
        correct_cumulative=counts[1].tolist(),
        loss_sum=sums[0].tolist(),
        entropy_sum=sums[1].tolist(),
        confidence_sum=sums[2].tolist(),
        teacher_correct=None if teacher is None else int(seen[1]),
    )
