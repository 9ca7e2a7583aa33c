"""Measure a finished run again, at any number of time steps, on any split."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tser_cli.data.loaders import Split
from tser_cli.energy import load_profile
from tser_cli.engine.evaluation import early_exit
from tser_cli.engine.evaluation.per_timestep import Evaluation, evaluate_split
from tser_cli.engine.runs.finished_run import FinishedRun, open_finished, select_run
from tser_cli.engine.runs.model_files import freeze
from tser_cli.engine.runs.result import recorded
from tser_cli.engine.teachers.of_run import read_run_teacher, teacher_name
from tser_cli.engine.training.training_run import profile_of, row_labels
from tser_cli.errors import ConfigError, DiskFullError, RunError, TserError
from tser_cli.files import check_folder
from tser_cli.report import plots
from tser_cli.report.csv_files import per_timestep_csv
from tser_cli.report.progress import Progress, Silent

MAX_TIMESTEPS = 1024
SPLITS: dict[str, Split] = {"test": "test", "validation": "validation", "train": "train"}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluateRequest:
    """What to measure; None and "" mean the run's own.

    `timesteps`: "4" is 1..4, "1-6" a range, "1,2,4" those. `early_exit` and `early_exit_entropy`:
    thresholds, as "0.8,0.9". `changes`: settings such as training.device, by dotted key.
    """

    run: Path | None = None
    runs_dir: Path = Path("runs")
    timesteps: str = ""
    split: str = "test"
    output: Path | None = None
    plot: bool = False
    early_exit: str = ""
    early_exit_entropy: str = ""
    profile: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class EvaluateResult:
    """What was measured: the rows of per_timestep.csv, those of early exit, and the files.

    The files are None where there is nothing in them, or the run's folder can't be written to.
    """

    name: str
    split: str
    rows: Rows
    table: Path | None
    figure: Path | None
    early_exit_rows: Rows
    early_exit_table: Path | None


def parse_timesteps(text: str, trained: int) -> list[int]:
    """Return the steps: "" -> 1..trained, "4" -> 1..4, "1-6" -> 1..6, "1,2,4" -> those.

    Raises ConfigError.
    """
    if not text:
        return list(range(1, trained + 1))
    steps: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", part)
        if not match:
            raise ConfigError(f'--timesteps "{text}": write 4, 1-6 or 1,2,4')
        first, last = int(match[1]), int(match[2] or match[1])
        steps.update(range(first, last + 1))
        if not 1 <= first <= last <= MAX_TIMESTEPS:
            raise ConfigError(f'--timesteps "{text}": steps run from 1 to {MAX_TIMESTEPS}, upwards')
    alone = "," not in text and "-" not in text
    return list(range(1, max(steps) + 1)) if alone else sorted(steps)


def evaluate_run(request: EvaluateRequest) -> EvaluateResult:
    """Evaluate all steps in one pass and write the tables; return what they hold.

    An SNN is causal: its logits at step t are the same for any T >= t. So one pass with the largest
    T gives the accuracy for every smaller one. Raises ConfigError, RunError, CheckpointError or
    DataError.
    """
    rules = _check(request)
    opened = open_finished(
        select_run(request.run, request.runs_dir), request.changes, request.progress
    )
    model, context, split = opened.loaded.model, opened.context, SPLITS[request.split]
    steps = _steps(opened, request, bool(rules))
    full = evaluate_split(model, context, split, max(steps), count=bool(rules))
    accuracy = teacher_accuracy(opened, split)
    rows = [{**row, "teacher_accuracy": accuracy} for row in full.rows() if row["t"] in steps]
    return context.runtime.on_main(lambda: _write(opened, request, rows, steps, rules, full))


def _check(request: EvaluateRequest) -> list[early_exit.Rule]:
    """Refuse what is mistyped before any work; return the rules of early exit."""
    if request.split not in SPLITS:
        raise ConfigError(f'--split "{request.split}": use one of {", ".join(SPLITS)}')
    if request.output is not None:
        check_folder(request.output)
    if request.profile:
        load_profile(request.profile)
    asked = (
        (request.early_exit, early_exit.CONFIDENCE, "--early-exit"),
        (request.early_exit_entropy, early_exit.ENTROPY, "--early-exit-entropy"),
    )
    return [rule for a in asked if a[0] for rule in early_exit.parse_thresholds(*a)]


def _steps(opened: FinishedRun, request: EvaluateRequest, exits: bool) -> list[int]:
    spiking, folder = opened.loaded.model.spiking, opened.run.folder
    if not spiking and request.timesteps not in ("", "1"):
        raise ConfigError(f"--timesteps: {folder} is a teacher, an ANN without time steps")
    if not spiking and exits:
        raise ConfigError(f"--early-exit: {folder} is an ANN without time steps")
    if exits and not opened.loaded.model.steps_alone:
        raise ConfigError(
            f"--early-exit: {opened.loaded.name} computes all its time steps at once; a network "
            "with stem() and body() in place of forward() can stop between them"
        )
    return parse_timesteps(request.timesteps, opened.config.model.timesteps if spiking else 1)


def _write(
    opened: FinishedRun,
    request: EvaluateRequest,
    rows: Rows,
    steps: list[int],
    rules: list[early_exit.Rule],
    full: Evaluation,
) -> EvaluateResult:
    run, stem = opened.run, _stem(opened, request, steps)
    can_write = _can_write(opened, request, stem)
    table = request.output or (run.folder / f"{stem}.csv" if can_write else None)
    labels = row_labels(run, opened.config, request.split, opened.loaded.name, teacher_name(run))
    if table is not None:
        per_timestep_csv(table, rows, labels)
    figure = run.folder / "figures" / f"{stem}.png" if request.plot and can_write else None
    if figure is not None:
        plots.plot_per_timestep(figure, rows, run.name, str(labels["method"]))
    exits, exits_table = Rows(), None
    if rules:
        exits_table = _early_exit_path(run.folder, request) if table is not None else None
        profile = load_profile(request.profile or profile_of(opened.config))
        split = SPLITS[request.split]
        exits = early_exit.early_exit(opened, rules, full, split, exits_table, profile)
    return EvaluateResult(run.name, request.split, rows, table, figure, exits, exits_table)


def _can_write(opened: FinishedRun, request: EvaluateRequest, stem: str) -> bool:
    """Return whether the run's folder takes files; what was measured is worth showing without.

    Raises DiskFullError: that can be mended.
    """
    try:
        check_folder(opened.run.folder / f"{stem}.csv")
    except DiskFullError:
        raise
    except RunError as error:
        if request.output is None or request.plot:
            left = "nothing" if request.output is None else "no figure"
            opened.context.progress.warn(f"{left} was saved: {error} (--output FILE)")
        return False
    return True


def _stem(opened: FinishedRun, request: EvaluateRequest, steps: list[int]) -> str:
    """Name the table: the run's own is written again only by a measurement as at its end."""
    trained = opened.config.model.timesteps if opened.loaded.model.spiking else 1
    changed = any(request.changes.get(key) for key in ("training.precision", "data.dir"))
    if request.split == "test" and steps == list(range(1, trained + 1)) and not changed:
        return "per_timestep"
    return f"per_timestep_{request.split}_T{written_steps(steps)}"


def written_steps(steps: list[int]) -> str:
    """Write time steps for a file's name: [1, 2, 3, 4] -> "4", [1, 2, 4] -> "1-2-4"."""
    whole = steps == list(range(1, len(steps) + 1))
    return str(len(steps)) if whole else "-".join(str(step) for step in steps)


def _early_exit_path(folder: Path, request: EvaluateRequest) -> Path:
    if request.output is not None:
        return request.output.with_name(f"{request.output.stem}_early_exit.csv")
    split = "" if request.split == "test" else f"_{request.split}"
    return folder / f"early_exit{split}.csv"


def teacher_accuracy(opened: FinishedRun, split: Split) -> float | None:
    """Return the teacher's accuracy on `split`: recorded for the test set, else measured again.

    None where the run had no teacher or, with a warning, where it can't be read any more.
    """
    known: float | None = recorded(opened.run).get("teacher_accuracy")
    if split == "test" or known is None:
        return known
    try:
        teacher = read_run_teacher(opened.run, opened.context.dataset.spec)
    except TserError as error:
        opened.context.progress.warn(f"the teacher's accuracy is left out: {error}")
        return None
    if teacher is None:
        return None
    opened.context.runtime.place(freeze(teacher.model))
    return evaluate_split(teacher.model, opened.context, split, 1).accuracy
