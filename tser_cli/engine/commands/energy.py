"""Count the synaptic operations of a finished run, and price them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tser_cli.config import method_label
from tser_cli.csv_words import ALL, TOTAL
from tser_cli.energy import (
    Counts,
    Labels,
    Profile,
    energy_up_to,
    load_profile,
)
from tser_cli.energy.auxiliary import Auxiliary
from tser_cli.energy.layouts import INSIDE
from tser_cli.energy.profiles import check_precision
from tser_cli.engine.commands.beyond import Beyond, Wanted, go_beyond
from tser_cli.engine.commands.network_energy import count, weight_bits
from tser_cli.engine.commands.networks import NetworkRequest, test_images
from tser_cli.engine.evaluation.operation_counts import EnergyReport, Price, write_energy
from tser_cli.engine.evaluation.per_timestep import Answers, Evaluation, evaluate_split
from tser_cli.engine.runs.finished_run import FinishedRun, open_finished, select_run
from tser_cli.engine.runs.result import recorded
from tser_cli.engine.teachers.of_run import teacher_to_count
from tser_cli.engine.training.energy_budget import profile_of
from tser_cli.errors import ConfigError
from tser_cli.files import check_folder, write_text
from tser_cli.report import plots
from tser_cli.report.csv_files import PER_IMAGE, write_csv
from tser_cli.report.energy_forms import SUMS
from tser_cli.report.progress import Progress, Silent
from tser_cli.report.style import FORMATS


@dataclass(frozen=True)
class EnergyRequest:
    """What to count and where to write it; `images` 0 means the whole test set.

    `profile` "" is that of the weights' bits; `form`: see `energy_forms.in_form`.
    """

    output: Path
    run: Path | None = None
    runs_dir: Path = Path("runs")
    images: int = 0
    profile: str = ""
    per_image: Path | None = None
    memory: bool = False
    form: str = SUMS
    wanted: Wanted = field(default_factory=Wanted)
    changes: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class EnergyResult:
    """What was counted and priced: the rows of energy.csv, the sidecar's document, the files."""

    name: str
    rows: list[dict[str, Any]]
    document: dict[str, Any]
    written: tuple[Path, ...]
    beyond: Beyond = field(default_factory=Beyond)


def measure_energy(request: EnergyRequest) -> EnergyResult:
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
    check_precision(profile, weight_bits(model), request.wanted.assume_int8)
    full = evaluate_split(
        opened.loaded.model,
        opened.context,
        "test",
        opened.config.model.timesteps,
        count=True,
        images=request.images,
    )
    return opened.context.runtime.on_main(lambda: _write(opened, request, full, profile))


def _write(
    opened: FinishedRun, request: EnergyRequest, full: Evaluation, profile: Profile
) -> EnergyResult:
    assert full.counts is not None and full.answers is not None, "a counted pass"
    teacher = teacher_to_count(opened.run, opened.context)
    price = Price(profile, teacher, request.memory, request.form)
    report = write_energy(request.output, full, labels_of(opened), price, opened.context)
    if request.per_image is not None:
        rows = per_image_rows(opened, full.answers, full.counts, profile)
        write_csv(request.per_image, rows, PER_IMAGE)
    figures = draw(opened, request.output, report, full)
    beyond = _beyond(opened, request, profile)
    document = {**report.document, **beyond.document()}
    if document != report.document:
        write_text(request.output.with_suffix(".json"), json.dumps(document, indent=2) + "\n")
    files = [request.output, files_of(request.output)[0], request.per_image, *figures]
    written = (*(path for path in files if path is not None), *beyond.written)
    return EnergyResult(opened.run.name, report.rows, document, written, beyond)


def _beyond(opened: FinishedRun, request: EnergyRequest, profile: Profile) -> Beyond:
    """Return what was asked for beyond the table, which takes a second, more detailed count."""
    if not request.wanted.any and not profile.model:
        return Beyond()
    counts, others = detailed_counts(opened, request.images)
    return go_beyond(request.output, counts, others, profile, request.wanted)


def detailed_counts(opened: FinishedRun, images: int) -> tuple[Counts, Auxiliary]:
    """Count so many test images (0: all) with what memory and conventions need to know of them.

    Raises TserError where the network's layers can't be told apart so.
    """
    model, context, timesteps = opened.loaded.model, opened.context, opened.config.model.timesteps
    subject = NetworkRequest(opened.run.name, timesteps=timesteps, layout=INSIDE)
    inputs = test_images(context, images)
    _, counter = count(model, inputs, subject, True, model.input_kinds())
    return counter.counts(), counter.others


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


def labels_of(opened: FinishedRun) -> Labels:
    """Return what tells the run's table apart."""
    config = opened.config
    return Labels(
        opened.run.name, config.data.name, opened.loaded.sha256, config.training.precision
    )


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
    known = recorded(run)
    accuracy = known.get("teacher_accuracy") if known.get("images") == full.images else None
    spent_T = itertools.accumulate(row["energy_pj"] for row in steps)
    points = list(zip(spent_T, accuracy_T, strict=True))
    of_teacher = None if teacher is None or accuracy is None else (teacher, accuracy)
    return [
        *plots.plot_by_layer(by_layer, report.rows, run.name),
        *plots.plot_accuracy(against, points, of_teacher, run.name, method),
    ]
