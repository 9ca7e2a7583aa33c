"""`tser evaluate`: measure a finished run again, at any number of time steps, on any split."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tser_cli.config import Config
from tser_cli.data.loaders import Split
from tser_cli.engine import networks, runs
from tser_cli.engine.networks import Loaded
from tser_cli.engine.run import Workplace, evaluate_split, prepare, row_labels
from tser_cli.engine.runs import Run
from tser_cli.engine.tasks import check_teacher, freeze
from tser_cli.errors import ConfigError, RunError, TserError
from tser_cli.report import console, plots
from tser_cli.report.tables import per_timestep_csv

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
    changes: dict[str, Any] | None = None


@dataclass(frozen=True)
class Opened:
    """A finished run with its network on the device and its data."""

    run: Run
    place: Workplace
    loaded: Loaded

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.place.config


def select_run(run: Path | None, runs_dir: Path) -> Run:
    """The run at a path, or the newest finished student. Raises RunError."""
    if run is not None:
        return runs.open_run(run)
    newest = runs.newest_finished(runs_dir, "student")
    if newest is None:
        raise RunError(
            f"there is no finished student under {runs_dir}. Distil one first (tser distill), or "
            "name a run with --run, or its place with --runs-dir"
        )
    return newest


def open_finished(run: Run, changes: dict[str, Any]) -> Opened:
    """The run's network and data; `changes` are settings such as training.device."""
    config = run.config().updated({k: v for k, v in changes.items() if v is not None})
    place = prepare(config)
    loaded = networks.read(run.model_file, place.dataset.spec)
    spec = place.dataset.spec
    check_teacher(loaded.model, spec.image_shape, spec.num_classes)
    place.runtime.place(freeze(loaded.model))
    return Opened(run, place, loaded)


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
    opened = open_finished(select_run(request.run, request.runs_dir), request.changes or {})
    run, model = opened.run, opened.loaded.model
    trained = opened.config.model.timesteps if model.spiking else 1
    if not model.spiking and request.timesteps not in ("", "1"):
        raise ConfigError(f"--timesteps: {run.folder} is a teacher, an ANN without time steps")
    steps = parse_timesteps(request.timesteps, trained)
    evaluation = evaluate_split(model, opened.place, SPLITS[request.split], max(steps))
    accuracy = teacher_accuracy(opened, SPLITS[request.split])
    rows = [{**row, "teacher_accuracy": accuracy} for row in evaluation.rows() if row["t"] in steps]
    same = request.split == "test" and steps == list(range(1, trained + 1))
    stem = "per_timestep" if same else f"per_timestep_{request.split}_T{max(steps)}"
    path = request.output or run.folder / f"{stem}.csv"
    if opened.place.runtime.is_main:
        _write(opened, request, rows, path, stem)
    return path


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
        teacher = networks.read(Path(source), opened.place.dataset.spec).model
    except TserError as error:
        opened.place.progress.warn(f"the teacher's accuracy is left out: {error}")
        return None
    opened.place.runtime.place(freeze(teacher))
    return evaluate_split(teacher, opened.place, split, 1).accuracy
