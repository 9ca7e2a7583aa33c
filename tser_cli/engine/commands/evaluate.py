"""`tser evaluate`: measure a finished run again, at any number of time steps, on any split."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tser_cli.data.loaders import Split
from tser_cli.energy import DEFAULT_PROFILE, load_profile
from tser_cli.engine.commands.distill import row_labels
from tser_cli.engine.evaluation import early_exit
from tser_cli.engine.runs import model_files
from tser_cli.engine.runs.finished_run import Opened, open_finished, select_run
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.context import evaluate_split
from tser_cli.engine.training.task import freeze
from tser_cli.errors import ConfigError, TserError
from tser_cli.files import check_folder
from tser_cli.report import console, energy_report, plots
from tser_cli.report.csv_files import per_timestep_csv

MAX_TIMESTEPS = 1024
SPLITS: dict[str, Split] = {"test": "test", "validation": "validation", "train": "train"}


@dataclass(frozen=True)
class Evaluating:
    """What `tser evaluate` was asked; None and "" mean the run's own."""

    run: Path | None = None
    runs_dir: Path = Path("runs")
    timesteps: str = ""
    split: str = "test"
    output: Path | None = None
    per_timestep: bool = False
    plot: bool = False
    early_exit: str = ""
    early_exit_entropy: str = ""
    profile: str = DEFAULT_PROFILE
    changes: dict[str, Any] | None = None


def parse_timesteps(text: str, trained: int) -> list[int]:
    """ "" -> 1..trained, "4" -> 1..4, "1-6" -> 1..6, "1,2,4" -> those. Raises ConfigError."""
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


def evaluate_run(request: Evaluating) -> Path:
    """Evaluate all steps in one pass, write the table, show it; returns the CSV's path.

    An SNN is causal: its logits at step t are the same for any T >= t, so that one pass of the
    largest T gives the accuracy for every smaller one.
    """
    if request.split not in SPLITS:
        raise ConfigError(f'--split "{request.split}": use one of {", ".join(SPLITS)}')
    if _rules(request) and request.split != "test":
        raise ConfigError("--early-exit is measured on the test set; leave --split out")
    if request.output is not None:
        check_folder(request.output)
    load_profile(request.profile)  # a mistyped one is told before the work
    opened = open_finished(select_run(request.run, request.runs_dir), request.changes or {})
    run, model = opened.run, opened.loaded.model
    trained = opened.config.model.timesteps if model.spiking else 1
    if not model.spiking and request.timesteps not in ("", "1"):
        raise ConfigError(f"--timesteps: {run.folder} is a teacher, an ANN without time steps")
    steps = parse_timesteps(request.timesteps, trained)
    evaluation = evaluate_split(model, opened.context, SPLITS[request.split], max(steps))
    accuracy = teacher_accuracy(opened, SPLITS[request.split])
    rows = [{**row, "teacher_accuracy": accuracy} for row in evaluation.rows() if row["t"] in steps]
    asked = request.changes or {}
    as_trained = all(asked.get(key) is None for key in ("training.precision", "data.dir"))
    same = request.split == "test" and steps == list(range(1, trained + 1)) and as_trained
    stem = "per_timestep" if same else f"per_timestep_{request.split}_T{written(steps)}"
    path = request.output or run.folder / f"{stem}.csv"
    if opened.context.runtime.is_main:
        _write(opened, request, rows, path, stem)
        _exit_early(opened, request, max(steps))
    return path


def written(steps: list[int]) -> str:
    """Time steps in a file's name: [1, 2, 3, 4] -> "4", [1, 2, 4] -> "1-2-4"."""
    whole = steps == list(range(1, len(steps) + 1))
    return str(len(steps)) if whole else "-".join(str(step) for step in steps)


def _rules(request: Evaluating) -> list[early_exit.Rule]:
    asked = (
        (request.early_exit, early_exit.CONFIDENCE),
        (request.early_exit_entropy, early_exit.ENTROPY),
    )
    return [
        rule
        for text, criterion in asked
        if text
        for rule in early_exit.parse_thresholds(text, criterion)
    ]


def _exit_early(opened: Opened, request: Evaluating, timesteps: int) -> None:
    rules = _rules(request)
    if not rules:
        return
    path = opened.run.folder / "early_exit.csv"
    if request.output is not None:
        path = request.output.with_name(f"{request.output.stem}_early_exit.csv")
    profile = load_profile(request.profile)
    rows = early_exit.early_exit(opened, rules, timesteps, path, profile)
    out = console.output()
    out.print(energy_report.early_exit_table(rows))
    out.print(f"table: {path}", soft_wrap=True)


def _write(
    opened: Opened, request: Evaluating, rows: list[dict[str, Any]], path: Path, stem: str
) -> None:
    run, out = opened.run, console.output()
    before = teacher_name(run)
    labels = row_labels(run, opened.config, request.split, opened.loaded.name, before)
    per_timestep_csv(path, rows, labels)
    if request.per_timestep:
        out.print(console.per_timestep_table(run.name, rows))
    out.print(console.summary(rows, request.split), soft_wrap=True)
    out.print(f"table: {path}", soft_wrap=True)
    if request.plot:
        figure = run.folder / "figures" / f"{stem}.png"
        plots.plot_per_timestep(figure, rows, run.name)
        out.print(f"figure: {figure}", soft_wrap=True)


def teacher_name(run: Run) -> str | None:
    """The architecture of the run's teacher, None where it had none."""
    teacher = run.environment().get("teacher") or {}
    name = teacher.get("model")
    return str(name) if name else None


def teacher_accuracy(opened: Opened, split: Split) -> float | None:
    """The teacher's accuracy on `split`: as recorded for the test set, else measured again.

    None where the run had no teacher or, with a warning, where it can't be read any more.
    """
    recorded = opened.run.status().get("teacher_accuracy")
    if split == "test" or recorded is None:
        return recorded
    source = (opened.run.environment().get("teacher") or {}).get("source", "")
    try:
        teacher = model_files.read(Path(source), opened.context.dataset.spec).model
    except TserError as error:
        opened.context.progress.warn(f"the teacher's accuracy is left out: {error}")
        return None
    opened.context.runtime.place(freeze(teacher))
    return evaluate_split(teacher, opened.context, split, 1).accuracy
