"""Price the operations that were counted, and write the tables of it.

What `tser energy` tells beyond one table: conventions, memory, and the fair rival.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tser_cli.base.errors import TserError
from tser_cli.base.files import write_text
from tser_cli.data.loaders import build_eval_loader
from tser_cli.energy.any_network.layouts import INSIDE
from tser_cli.energy.any_network.network_counter import count_operations
from tser_cli.energy.conventions import rival
from tser_cli.energy.conventions.conventions import Auxiliary, Compared, compare, matching
from tser_cli.energy.conventions.rival import Rival, fair_rival
from tser_cli.energy.counts import Counts
from tser_cli.energy.joules import skipped_share
from tser_cli.energy.prices import Profile
from tser_cli.energy.table import Labels, energy_rows, sidecar
from tser_cli.engine.evaluation.evaluate import Evaluation
from tser_cli.engine.runs.networks import Loaded, counting_of
from tser_cli.engine.runs.opened import Context
from tser_cli.models.base import Classifier
from tser_cli.report.csv_files import CONVENTIONS, SUMS, write_csv, write_energy_csv
from tser_cli.settings.fields import parse_energy
from tser_cli.settings.options import Wanted

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


@dataclass(frozen=True)
class Memory:
    """The energy of the network and of the ANN of its shape on the model of Lemaire et al."""

    snn: rival.LemaireEnergy
    ann: rival.LemaireEnergy


@dataclass(frozen=True)
class Beyond:
    """What was found of it; empty or None where it was not asked for.

    `matched`: the conventions within 5 % of the figure that was to be matched, None without one.
    """

    conventions: tuple[Compared, ...] = ()
    matched: tuple[Compared, ...] | None = None
    match: str = ""
    memory: Memory | None = None
    rival: Rival | None = None
    written: tuple[Path, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the part of the sidecar."""
        found: dict[str, Any] = {}
        if self.conventions:
            found["conventions"] = [one.row() for one in self.conventions]
        if self.memory is not None:
            found["lemaire"] = {
                name: {**asdict(energy), "memory_pj": energy.memory_pj, "total_pj": energy.total_pj}
                for name, energy in (("snn", self.memory.snn), ("ann", self.memory.ann))
            }
        if self.rival is not None:
            found["fair_rival"] = asdict(self.rival)
        return found


def go_beyond(
    output: Path, counts: Counts, others: Auxiliary, profile: Profile, wanted: Wanted
) -> Beyond:
    """Make what was asked for from counts with details; the table goes beside `output`.

    Raises ConfigError for a figure that is no energy.
    """
    figure = parse_energy(wanted.match) if wanted.match else None
    compared: tuple[Compared, ...] = ()
    written: tuple[Path, ...] = ()
    if wanted.conventions or figure is not None:
        compared = tuple(compare(counts, profile, others))
    if wanted.conventions:
        table = output.with_name(f"{output.stem}_conventions.csv")
        write_csv(table, [one.row() for one in compared], CONVENTIONS)
        written = (table,)
    memory = None
    if profile.model or wanted.fair_rival:
        memory = Memory(rival.snn_energy(counts), rival.ann_energy(counts))
    return Beyond(
        conventions=compared,
        matched=None if figure is None else tuple(matching(compared, figure)),
        match=wanted.match,
        memory=memory,
        rival=fair_rival(counts, profile) if wanted.fair_rival else None,
        written=written,
    )
