"""Price the operations that were counted, for a table and its sidecar."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tser_cli.base.errors import TserError
from tser_cli.base.files import write_text
from tser_cli.data.loaders import build_eval_loader
from tser_cli.energy.counts import Counts
from tser_cli.energy.joules import skipped_share
from tser_cli.energy.prices import Profile
from tser_cli.energy.table import Labels, energy_rows, sidecar
from tser_cli.engine.evaluation.evaluate import Evaluation
from tser_cli.engine.runs.networks import UNTRAINED, Loaded, counting_of
from tser_cli.engine.runs.opened import Context
from tser_cli.models.base import Classifier
from tser_cli.report.csv_files import SUMS, write_energy_csv

if TYPE_CHECKING:  # wings, whose figures a result may hold
    from tser_cli.energy.conventions.conventions import AsCounted
    from tser_cli.energy.conventions.rival import LemaireEnergy, Rival

IMAGES_OF_ZEROS = 16  # they differ little from image to image


@torch.inference_mode()
def count_ann(
    model: Classifier, context: Context, images: int = 1, detailed: bool = False
) -> Counts:
    """Return the counts of an ANN from one image: they are the same for every image.

    Those of the zeros that it meets, `detailed`, are not.
    """
    batch = next(iter(build_eval_loader(context.dataset, "test", context.config)))
    was_training = model.training
    model.eval()
    with counting_of(model, 1, detailed) as counter:
        model(context.runtime.images(batch.images_NCHW[:images]))
    model.train(was_training)
    return counter.counts()


def share_of_zeros(model: Classifier, context: Context) -> float | None:
    """Return the share of an ANN's multiply-accumulates that meet a zero, on some test images.

    None, which is reported, where the network can't be counted in detail.
    """
    try:
        return skipped_share(count_ann(model, context, IMAGES_OF_ZEROS, detailed=True))
    except TserError as error:
        context.progress.say(f"the teacher's zeros are not counted: {error}")
        return None


@dataclass(frozen=True)
class EnergyReport:
    """The rows of energy.csv, and the sidecar JSON beside it as a document."""

    rows: list[dict[str, Any]]
    document: dict[str, Any]

    @property
    def energy_pj(self) -> float:
        """Return the mean energy of an image over all time steps, in pJ."""
        return float(self.document["totals"]["energy_pj"])

    def write(self, path: Path, form: str = SUMS) -> None:
        """Write energy.csv at `path`, and the sidecar beside it. Raises RunError."""
        write_energy_csv(path, self.rows, form)
        write_text(path.with_suffix(".json"), json.dumps(self.document, indent=2) + "\n")


def energy_report(
    counted: Evaluation,
    labels: Labels,
    profile: Profile,
    context: Context | None,
    *,
    teacher: Loaded | None = None,
    memory: bool = False,
) -> EnergyReport:
    """Price a counted pass; `teacher`: the network to compare with, on images of the context.

    `memory`: see `sidecar`.
    """
    counts = counted.counts
    assert counts is not None, "a counted pass"
    # how many zeros an ANN computes with is a matter of its weights, unlike all else of it here
    trained = teacher if teacher and teacher.source != UNTRAINED else None
    rows = energy_rows(counts, profile, labels)
    document = sidecar(
        counts,
        profile,
        labels,
        teacher=count_ann(teacher.model, context) if teacher and context else None,
        teacher_name=teacher.name if teacher else "",
        memory=memory,
        skipped=share_of_zeros(trained.model, context) if trained and context else None,
        accuracy_T=[right / counted.images for right in counted.correct_cumulative],
    )
    return EnergyReport(rows, document)


@dataclass(frozen=True)
class Memory:
    """The energy of the network and of the ANN of its shape on the model of Lemaire et al."""

    snn: LemaireEnergy
    ann: LemaireEnergy


@dataclass(frozen=True)
class Beyond:
    """What was found of it; empty or None where it was not asked for.

    `matched`: the conventions within 5 % of the figure that was to be matched, None without one.
    """

    conventions: tuple[AsCounted, ...] = ()
    matched: tuple[AsCounted, ...] | None = None
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
