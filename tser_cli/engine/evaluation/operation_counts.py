"""Price the operations that were counted, and write the tables of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tser_cli.data.loaders import build_eval_loader
from tser_cli.energy import Counts, Labels, Profile, count_operations, energy_rows, sidecar
from tser_cli.energy.headline import skipped_share
from tser_cli.energy.layouts import INSIDE
from tser_cli.engine.evaluation.per_timestep import Evaluation
from tser_cli.engine.runs.input_kinds import counting_of
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runtime.context import Context
from tser_cli.errors import TserError
from tser_cli.files import write_text
from tser_cli.models import Classifier
from tser_cli.report.energy_forms import SUMS, write_energy_csv

IMAGES_OF_ZEROS = 16  # they differ little from image to image


@torch.inference_mode()
def count_ann(model: Classifier, context: Context) -> Counts:
    """Return the counts of an ANN from one image: they are the same for every image."""
    batch = next(iter(build_eval_loader(context.dataset, "test", context.config)))
    was_training = model.training
    model.eval()
    with counting_of(model, 1) as counter:
        model(context.runtime.images(batch.images_NCHW[:1]))
    model.train(was_training)
    return counter.counts()


@torch.inference_mode()
def share_of_zeros(model: Classifier, context: Context) -> float | None:
    """Return the share of an ANN's multiply-accumulates that meet a zero, on some test images.

    None, which is told, where the network can't be counted in detail.
    """
    batch = next(iter(build_eval_loader(context.dataset, "test", context.config)))
    try:
        with count_operations(model, INSIDE, 1, detailed=True) as counter:
            model(context.runtime.images(batch.images_NCHW[:IMAGES_OF_ZEROS]))
        return skipped_share(counter.counts())
    except TserError as error:
        context.progress.say(f"the teacher's zeros are not counted: {error}")
        return None


@dataclass(frozen=True)
class Price:
    """How counts become joules, the teacher to compare with, if any, and the form of the table."""

    profile: Profile
    teacher: Loaded | None = None
    memory: bool = False
    form: str = SUMS


@dataclass(frozen=True)
class EnergyReport:
    """The rows of energy.csv, and the sidecar JSON beside it as a document."""

    rows: list[dict[str, Any]]
    document: dict[str, Any]

    @property
    def energy_pj(self) -> float:
        """Return the mean energy of an image over all time steps, in pJ."""
        return float(self.document["totals"]["energy_pj"])


def write_energy(
    path: Path,
    counted: Evaluation,
    labels: Labels,
    price: Price,
    context: Context,
) -> EnergyReport:
    """Write energy.csv of a counted pass at `path`, and the sidecar beside it. Raises RunError."""
    teacher, counts = price.teacher, counted.counts
    assert counts is not None, "a counted pass"
    rows = energy_rows(counts, price.profile, labels)
    document = sidecar(
        counts,
        price.profile,
        labels,
        teacher=count_ann(teacher.model, context) if teacher else None,
        teacher_name=teacher.name if teacher else "",
        memory=price.memory,
        skipped=share_of_zeros(teacher.model, context) if teacher else None,
        accuracy_T=[right / counted.images for right in counted.correct_cumulative],
    )
    write_energy_csv(path, rows, price.form)
    write_text(path.with_suffix(".json"), json.dumps(document, indent=2) + "\n")
    return EnergyReport(rows, document)
