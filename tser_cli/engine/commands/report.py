"""Make one page of finished runs and ablations, for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from tser_cli import __version__
from tser_cli.engine.commands import report_files as files
from tser_cli.engine.commands.report_ablation import ablation_report, is_ablation
from tser_cli.engine.commands.report_measure import MeasureRequest
from tser_cli.engine.commands.report_run import RunFound, run_report
from tser_cli.engine.runs.find_runs import find_run
from tser_cli.engine.runs.finished_run import select_run
from tser_cli.engine.runs.run_folder import Run
from tser_cli.errors import ConfigError, RunError, nearest
from tser_cli.files import check_folder, is_file, is_folder, write_whole
from tser_cli.report.page import render
from tser_cli.report.page_values import (
    AblationReport,
    Missing,
    Page,
    Pair,
    RunReport,
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
    each = max(FEWEST_PICTURES, MOST_PICTURES // max(1, len(runs)))
    wanted = MeasureRequest(request.images, each, request.changes, request.progress)
    found = [run_report(run, request.measure, wanted) for run in runs]
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


def _pairs(found: Sequence[RunFound]) -> list[Pair]:
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
