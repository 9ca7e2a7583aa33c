"""Counting the operations of a network over the test set, and writing what they cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tser_cli.data.loaders import build_eval_loader
from tser_cli.energy import (
    Counts,
    Labels,
    Profile,
    counting,
    energy_rows,
    sidecar,
)
from tser_cli.engine.evaluation.per_timestep import cumulative_mean, logits_of
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runtime.context import Context
from tser_cli.files import write_text
from tser_cli.losses.functional import entropy
from tser_cli.models import Classifier
from tser_cli.report.csv_files import ENERGY, write_csv


@dataclass(frozen=True)
class Measured:
    """Counts of a network over a split of I images, and what it answered at each step, [T, I].

    `correct_TI`: by the logits of step t alone. The others are of the mean of the logits of steps
    1..t: whether right, its largest probability, its entropy in nats. `index_I`: which test images.
    """

    counts: Counts
    index_I: Tensor
    labels_I: Tensor
    correct_TI: Tensor
    correct_cumulative_TI: Tensor
    confidence_TI: Tensor
    entropy_TI: Tensor


@torch.inference_mode()
def measure(
    model: Classifier,
    context: Context,
    timesteps: int,
    images: int = 0,
    heed: Callable[[], None] | None = None,
) -> Measured:
    """Run `model` over `images` test images, evenly spread over all (0: all), and count.

    Evenly, since the images of a folder are sorted by class. `heed` is called before each batch,
    and may raise Interrupted.
    """
    loader = build_eval_loader(context.dataset, "test", context.config)
    chosen = chosen_images(loader.images, images)
    steps = timesteps if model.spiking else 1
    answers: list[tuple[Tensor, ...]] = []
    was_training = model.training
    model.eval()
    with counting(model, model.input_kinds()) as counter:
        for batch in loader:
            if heed:
                heed()
            taken = torch.isin(batch.indices_N, chosen)
            if not taken.any():
                continue
            with context.runtime.autocast():
                logits_TNK = logits_of(
                    model, context.runtime.images(batch.images_NCHW[taken]), steps
                )
            indices_N, labels_N = batch.indices_N[taken], batch.labels_N[taken]
            answers.append((indices_N, *answers_of(logits_TNK.double().cpu(), labels_N)))
    model.train(was_training)
    joined = [torch.cat(parts, dim=-1) for parts in zip(*answers, strict=True)]
    return Measured(counter.counts(), *joined)


def chosen_images(total: int, wanted: int) -> Tensor:
    """The indices of `wanted` of `total` images, evenly spread; all for 0 or too many."""
    count = min(wanted or total, total)
    return torch.arange(count) * total // count


def answers_of(logits_TNK: Tensor, labels_N: Tensor) -> tuple[Tensor, ...]:
    """The fields of `Measured` from `labels_I` on, for one batch."""
    mean_TNK = cumulative_mean(logits_TNK)
    return (
        labels_N,
        logits_TNK.argmax(-1) == labels_N,
        mean_TNK.argmax(-1) == labels_N,
        mean_TNK.softmax(-1).amax(-1),
        entropy(mean_TNK),
    )


@torch.inference_mode()
def count_ann(model: Classifier, context: Context) -> Counts:
    """The counts of an ANN, which are the same for every image: one pass over one."""
    batch = next(iter(build_eval_loader(context.dataset, "test", context.config)))
    was_training = model.training
    model.eval()
    with counting(model, model.input_kinds()) as counter:
        model(context.runtime.images(batch.images_NCHW[:1]))
    model.train(was_training)
    return counter.counts()


@dataclass(frozen=True)
class Price:
    """How counts become joules, and the teacher to compare with, if any."""

    profile: Profile
    teacher: Loaded | None = None
    memory: bool = False


@dataclass(frozen=True)
class Report:
    """The rows of energy.csv and the sidecar beside it."""

    rows: list[dict[str, Any]]
    document: dict[str, Any]


def write_energy(
    path: Path, measured: Measured, labels: Labels, price: Price, context: Context
) -> Report:
    """Write energy.csv at `path` and the sidecar JSON beside it. Raises RunError."""
    teacher = price.teacher
    rows = energy_rows(measured.counts, price.profile, labels)
    document = sidecar(
        measured.counts,
        price.profile,
        labels,
        teacher=count_ann(teacher.model, context) if teacher else None,
        teacher_name=teacher.name if teacher else "",
        memory=price.memory,
    )
    write_csv(path, rows, ENERGY)
    write_text(path.with_suffix(".json"), json.dumps(document, indent=2) + "\n")
    return Report(rows, document)
