"""Count the synaptic operations of a finished run, and price them."""

from __future__ import annotations

import itertools
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from tser_cli.base.errors import ConfigError
from tser_cli.base.files import check_folder, write_text
from tser_cli.energy.counts import Counts
from tser_cli.energy.joules import energy_up_to
from tser_cli.energy.prices import Profile, check_precision, load_profile
from tser_cli.energy.table import Labels
from tser_cli.engine.evaluation.energy import Beyond, EnergyReport, write_energy
from tser_cli.engine.evaluation.evaluate import Answers, Evaluation, as_measured, evaluate_split
from tser_cli.engine.runs.networks import Counting, counting_of
from tser_cli.engine.runs.opened import FinishedRun, open_finished, select_run
from tser_cli.engine.runs.record import find_result
from tser_cli.engine.runs.teachers import teacher_to_count
from tser_cli.engine.training.budget import profile_of
from tser_cli.models.base import Classifier
from tser_cli.report import figures
from tser_cli.report.csv_files import ALL, PER_IMAGE, TOTAL, write_csv
from tser_cli.report.style import FORMATS
from tser_cli.settings.config import method_label
from tser_cli.settings.options import EnergyRequest


@dataclass(frozen=True)
class EnergyResult:
    """What was counted and priced: the rows of energy.csv, the sidecar's document, the files."""

    name: str
    rows: list[dict[str, Any]]
    document: dict[str, Any]
    written: tuple[Path, ...]
    beyond: Beyond = field(default_factory=Beyond)


def goes_beyond(request: EnergyRequest) -> bool:
    """Return whether something is wanted that takes more than the plain counts of a run."""
    return request.any or bool(request.profile and load_profile(request.profile).model)


class Beside(Protocol):
    """What is counted in the same pass and written beside the table; see `network_energy`."""

    def counting(self, model: Classifier, timesteps: int) -> AbstractContextManager[Counting]: ...
    def write(self, opened: FinishedRun, request: EnergyRequest, profile: Profile) -> Beyond: ...


def measure_energy(request: EnergyRequest, beside: Beside | None = None) -> EnergyResult:
    """Count the operations of a finished run, price them, and write the tables and figures.

    Raises RunError, CheckpointError or ConfigError before anything is written.
    """
    if request.profile:
        load_profile(request.profile)  # a mistyped one is told before any work
    check_paths(request)
    opened = open_finished(
        select_run(request.run, request.runs_dir), request.changes, request.progress
    )
    model = opened.loaded.model
    profile = profile_of(opened.config, request.profile)
    check_precision(profile, weight_bits(model), request.assume_int8)
    # Kernels for integers can't be looked into, and each of several processes has its part alone:
    # what is beside then takes a pass of its own.
    context = opened.context
    together = context.runtime.world == 1 and as_measured(model, context) is model
    full = evaluate_split(
        model,
        context,
        "test",
        opened.config.model.timesteps,
        count=True,
        images=request.images,
        counting=beside.counting if beside is not None and together else counting_of,
    )
    return context.runtime.on_main(lambda: _write(opened, request, full, profile, beside))


def _write(
    opened: FinishedRun,
    request: EnergyRequest,
    full: Evaluation,
    profile: Profile,
    beside: Beside | None,
) -> EnergyResult:
    assert full.counts is not None and full.answers is not None, "a counted pass"
    teacher = teacher_to_count(opened.run, opened.context)
    config, weights = opened.config, opened.loaded.sha256
    report = write_energy(
        request.output,
        full,
        Labels(opened.run.name, config.data.name, weights, config.training.precision),
        profile,
        opened.context,
        teacher=teacher,
        memory=request.memory,
        form=request.form,
    )
    if request.per_image is not None:
        rows = per_image_rows(opened, full.answers, full.counts, profile)
        write_csv(request.per_image, rows, PER_IMAGE)
    figures = draw(opened, request.output, report, full)
    beyond = Beyond() if beside is None else beside.write(opened, request, profile)
    document = {**report.document, **beyond.document()}
    if document != report.document:
        write_text(request.output.with_suffix(".json"), json.dumps(document, indent=2) + "\n")
    files = [request.output, files_of(request.output)[0], request.per_image, *figures]
    written = (*(path for path in files if path is not None), *beyond.written)
    return EnergyResult(opened.run.name, report.rows, document, written, beyond)


def figures_of(output: Path) -> tuple[Path, Path]:
    """Return the names of the two figures beside the table, without suffix."""
    by_layer = output.with_name(f"{output.stem}_by_layer")
    return by_layer, output.with_name(f"{output.stem}_accuracy")


def files_of(output: Path) -> list[Path]:
    """Return what is written beside the table: the sidecar, and two figures as PNG and SVG."""
    figures = [name.with_name(f"{name.name}{s}") for name in figures_of(output) for s in FORMATS]
    return [output.with_suffix(".json"), *figures]


def check_paths(request: EnergyRequest) -> None:
    """Raise ConfigError or RunError where two files would be one, or one can't be written."""
    check_folder(request.output)
    if request.output.suffix != ".csv":
        raise ConfigError(
            f"{request.output}: the table is a CSV file; call it {request.output.stem}.csv"
        )
    paths = [request.output, *files_of(request.output)]
    if request.per_image is not None:
        paths.append(request.per_image)
    if len({path.absolute() for path in paths}) < len(paths):
        raise ConfigError(
            f"{request.output}: the table, its sidecar {paths[1].name} and the other files must "
            "have different names; call the table something.csv"
        )
    for path in paths:
        check_folder(path)


def per_image_rows(
    opened: FinishedRun, answers: Answers, counts: Counts, profile: Profile
) -> list[dict[str, Any]]:
    """Return a row per image and step: right at t, right on the mean up to t, energy up to t."""
    energy_TI = energy_up_to(counts, profile)
    return [
        {
            "run": opened.run.name,
            "dataset": opened.config.data.name,
            "profile": profile.name,
            "image": int(answers.index_I[image]),
            "label": int(answers.labels_I[image]),
            "t": t + 1,
            "correct_at_t": int(answers.correct_TI[t, image]),
            "correct_cumulative": int(answers.correct_cumulative_TI[t, image]),
            "energy_pj": float(energy_TI[t, image]),
        }
        for image in range(counts.images)
        for t in range(counts.timesteps)
    ]


def draw(opened: FinishedRun, output: Path, report: EnergyReport, full: Evaluation) -> list[Path]:
    """Draw the two figures beside the table: energy by layer, and accuracy against energy."""
    run, method = opened.run, method_label(opened.config)
    by_layer, against = figures_of(output)
    accuracy_T = [right / full.images for right in full.correct_cumulative]
    steps = [row for row in report.rows if row["layer"] == TOTAL and row["t"] != ALL]
    teacher = (report.document["teacher"] or {}).get("energy_pj")
    result = find_result(run)
    accuracy = result.teacher_accuracy if result and result.images == full.images else None
    spent_T = itertools.accumulate(row["energy_pj"] for row in steps)
    points = [
        figures.EnergyPoint(f"t = {t}", spent_pj, reached)
        for t, (spent_pj, reached) in enumerate(zip(spent_T, accuracy_T, strict=True), 1)
    ]
    taught = None
    if teacher is not None and accuracy is not None:
        taught = figures.EnergyPoint("teacher (ANN)", teacher, accuracy)
    layers = [
        figures.LayerEnergy.of_row(row)
        for row in report.rows
        if row["layer"] != TOTAL and row["t"] != ALL
    ]
    return [
        *figures.by_layer(layers, run.name).save(by_layer),
        *figures.tradeoff(points, taught, method=method, title=run.name).save(against),
    ]


def weight_bits(network: nn.Module) -> int:
    """Return the bits of the widest weights; layers of ours that round theirs say how far."""
    found = [
        getattr(module, "bits", 8 * weight.element_size())
        for module in network.modules()
        for weight in module.parameters(recurse=False)
        if weight.dim() > 1
    ]
    return max(found, default=8)
