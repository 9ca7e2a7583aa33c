"""Make one page of finished runs and ablations, for a browser."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from tser_cli import __version__
from tser_cli.engine.commands import report_files as files
from tser_cli.engine.commands import report_provenance as made
from tser_cli.engine.commands.report_ablation import ablation_report, is_ablation
from tser_cli.engine.commands.report_files import label, part
from tser_cli.engine.commands.report_measure import Measured, MeasureRequest, measure
from tser_cli.engine.commands.report_mistakes import mistakes, predictions
from tser_cli.engine.runs.find_runs import find_run
from tser_cli.engine.runs.finished_run import select_run
from tser_cli.engine.runs.run_folder import Run
from tser_cli.errors import ConfigError, RunError, nearest
from tser_cli.files import check_folder, is_file, is_folder, write_whole
from tser_cli.report.page import render
from tser_cli.report.page_values import (
    AblationReport,
    Accuracy,
    Duel,
    Energy,
    Missing,
    Page,
    Pair,
    RunReport,
    Tradeoff,
)
from tser_cli.report.predictions import Predictions
from tser_cli.report.progress import Progress, Silent
from tser_cli.report.statistics import mcnemar

MOST_SUBJECTS = 12
MOST_PICTURES = 40  # on a page
FEWEST_PICTURES = 8  # of a run
MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class ReportRequest:
    """What to report, and where the page goes.

    `subjects`: runs, by folder or name, and folders of ablations; () is the newest finished
    student. `measure`: run the networks over their test images, of which `images` are taken (0:
    all). `changes`: settings such as training.device, by dotted key.
    """

    subjects: tuple[Path, ...] = ()
    runs_dir: Path = Path("runs")
    output: Path = Path("report.html")
    measure: bool = True
    images: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class ReportResult:
    """The page's values, where it was written, its size in bytes, and which parts it lacks."""

    page: Page
    output: Path
    bytes: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A run's report, with what each of its test images was answered."""

    report: RunReport
    predictions: Predictions | Missing


def make_report(request: ReportRequest) -> ReportResult:
    """Gather what is known of the runs and ablations, and write the page.

    Raises ConfigError or RunError before anything is written.
    """
    if request.output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"{request.output}: the report is a web page; call it {request.output.stem}.html"
        )
    check_folder(request.output)
    runs, ablations = _subjects(request)
    pictures = max(FEWEST_PICTURES, MOST_PICTURES // max(1, len(runs)))
    found = [_run_report(run, request, pictures) for run in runs]
    page = Page(
        runs=tuple(one.report for one in found),
        ablations=tuple(ablation_report(folder) for folder in ablations),
        pairs=tuple(_pairs(found)),
        version=__version__,
    )
    content = render(page).encode(errors="backslashreplace")
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"the page would have {len(content):,} bytes, more than {MOST_BYTES:,}; "
            "name fewer runs at once"
        )
    write_whole(request.output, content)
    return ReportResult(page, request.output, len(content), tuple(_missing(page)))


def _subjects(request: ReportRequest) -> tuple[list[Run], list[Path]]:
    """Return the runs and the folders of ablations, in the order in which they were named."""
    if not request.subjects:
        return [select_run(None, request.runs_dir)], []
    if len(request.subjects) > MOST_SUBJECTS:
        raise ConfigError(
            f"{len(request.subjects)} runs are too many for one page; name at most {MOST_SUBJECTS}"
        )
    named = list(dict.fromkeys(request.subjects))
    ablations = [path for path in named if not _is_run(path) and is_ablation(path)]
    return [_open(path, request.runs_dir) for path in named if path not in ablations], ablations


def _is_run(path: Path) -> bool:
    return is_file(path / "status.json")


def _open(path: Path, runs_dir: Path) -> Run:
    """Return the run that `path` means, by its folder or name, finished or not. Raises RunError."""
    if is_folder(path) and not _is_run(path):
        beside = [entry.name for entry in path.parent.iterdir()] if is_folder(path.parent) else []
        raise RunError(
            f"{path} is neither a run folder nor that of an ablation{nearest(path.name, beside)}: "
            "it has no status.json, ablation.csv or plan.json"
        )
    run = find_run(path, runs_dir)
    files.existing(run.folder, "status.json")
    run.status()
    return run


def _run_report(run: Run, request: ReportRequest, pictures: int) -> _Found:
    known = part("config.toml", lambda: made.stated_settings(run))
    around = part("environment.json", lambda: made.surroundings(run))
    stated = {} if isinstance(known, Missing) else known
    surroundings = {} if isinstance(around, Missing) else around
    measured = _measured(run, request, pictures)
    accuracy = part("per_timestep.csv", lambda: files.accuracy(run))
    energy = part("energy.csv", lambda: files.energy(run))
    answered = _answered(run, measured)
    facts = made.facts(run, stated, surroundings)
    report = RunReport(
        name=label(run.name),
        folder=str(run.folder),
        title=_title(run, facts),
        kind=run.kind,
        state=label(run.status().get("state", "of no known state")),
        said=tuple(_said(run, measured)),
        facts=facts,
        accuracy=accuracy,
        curves=part("metrics.csv", lambda: files.curves(run)),
        mistakes=_mistakes(answered, measured),
        energy=energy,
        duels=tuple(_duels(run, energy, measured)),
        tradeoff=part("energy.csv", lambda: _tradeoff(run, accuracy, energy, measured)),
        gallery=measured if isinstance(measured, Missing) else measured.gallery,
        all_settings=made.in_words(stated),
        settings=known if isinstance(known, Missing) else made.settings(stated),
        environment=around if isinstance(around, Missing) else made.environment(around),
        commands=made.commands(run, surroundings),
    )
    return _Found(report, answered)


def _measured(run: Run, request: ReportRequest, pictures: int) -> Measured | Missing:
    if run.status().get("state") != "finished":
        return Missing("the run is not finished")
    if not request.measure:
        return Missing("the network was not run (--no-measure)")
    wanted = MeasureRequest(request.images, pictures, request.changes, request.progress)
    return part("the run", lambda: measure(run, wanted))


def _title(run: Run, facts: dict[str, Any]) -> str:
    if run.kind == "teacher":
        return f"{facts['model']}, a teacher on {facts['dataset']}"
    steps = facts["timesteps"]
    return f"{facts['model']} on {facts['dataset']}" + (f", T = {steps}" if steps else "")


def _said(run: Run, measured: Measured | Missing) -> list[str]:
    status = run.status()
    state, why = status.get("state"), str(status.get("why") or "")
    if state == "finished":
        without = [measured.why] if isinstance(measured, Missing) else []
        return [f"Without early exit and pictures: {why}" for why in without]
    because = f" ({label(why)})" if why else ""
    return [
        f"This run is {label(state or 'of no known state')}{because}, not finished. The page shows "
        "what it has written so far; the command that began it goes on with it"
    ]


def _answered(run: Run, measured: Measured | Missing) -> Predictions | Missing:
    """Return what each image was answered: as recorded, else as measured now."""
    recorded = part("predictions.npz", lambda: predictions(run))
    if isinstance(recorded, Missing) and isinstance(measured, Measured):
        return measured.predictions
    return recorded


def _mistakes(answered: Predictions | Missing, measured: Measured | Missing) -> Any:
    if isinstance(answered, Missing):
        return answered
    names = () if isinstance(measured, Missing) else measured.classes
    return part("predictions.npz", lambda: mistakes(answered, names))


def _duels(run: Run, energy: Energy | Missing, measured: Measured | Missing) -> list[Duel]:
    if isinstance(energy, Missing):
        return []
    more = () if isinstance(measured, Missing) else measured.duels
    return [*files.duels(energy, files.sidecar(run)), *more]


def _tradeoff(
    run: Run,
    accuracy: Accuracy | Missing,
    energy: Energy | Missing,
    measured: Measured | Missing,
) -> Tradeoff:
    """Return accuracy against energy: as measured, else from the run's tables. Raises RunError."""
    if isinstance(energy, Missing):
        raise RunError(energy.why)
    if isinstance(accuracy, Missing):
        raise RunError(accuracy.why)
    teacher_pj = files.teacher_energy(files.sidecar(run))
    point = None
    if teacher_pj is not None and accuracy.teacher is not None:
        point = (teacher_pj, accuracy.teacher)
    ann_pj = float(energy.total["ann_energy_pj"])
    if isinstance(measured, Measured) and measured.steps:
        return Tradeoff(measured.steps, measured.exits, point, ann_pj, measured.images)
    spent_T = itertools.accumulate(float(row["energy_pj"]) for row in energy.totals)
    steps = [
        {"t": row["t"], "energy_pj": spent, "accuracy": row["accuracy_cumulative"]}
        for spent, row in zip(spent_T, accuracy.rows, strict=True)
    ]
    return Tradeoff(tuple(steps), files.early_exit(run), point, ann_pj)


def _pairs(found: Sequence[_Found]) -> list[Pair]:
    """Compare the first run with each other one that answered the same images."""
    pairs = []
    for other in found[1:]:
        first, second = found[0].predictions, other.predictions
        if isinstance(first, Missing) or isinstance(second, Missing):
            continue
        if found[0].report.facts["dataset"] != other.report.facts["dataset"]:
            continue
        if np.array_equal(first.labels_I, second.labels_I):
            pairs.append(_pair(found[0].report.name, other.report.name, first, second))
    return pairs


def _pair(first: str, other: str, one: Predictions, two: Predictions) -> Pair:
    right_I, other_right_I = one.right(), two.right()
    return Pair(
        first,
        other,
        int((right_I & ~other_right_I).sum()),
        int((other_right_I & ~right_I).sum()),
        mcnemar(right_I, other_right_I),
    )


def _missing(page: Page) -> list[str]:
    """Return a line for each part that a report lacks."""
    everything: list[RunReport | AblationReport] = [*page.runs, *page.ablations]
    return [
        f"{one.name}: {part.name}: {found.why}"
        for one in everything
        for part in fields(one)
        if isinstance(found := getattr(one, part.name), Missing) and one.has(part.name)
    ]
