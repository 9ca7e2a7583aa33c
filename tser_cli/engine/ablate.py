"""`tser ablate`: many trainings that differ in the varied settings alone.

Every cell is an ordinary `tser distill` in a process of its own, so that one that fails, or is
killed, harms no other. All share one teacher and one data split; cells of one seed share initial
weights and data order, so that their differences are paired.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tser_cli import recipe
from tser_cli.engine import plan, teachers
from tser_cli.engine.cells import Launcher, find_cell, outcome
from tser_cli.engine.grid import Cell, choose_baseline, expand, label, parse_vary
from tser_cli.engine.run import provide_teacher
from tser_cli.engine.signals import StopRequest
from tser_cli.engine.workplace import Options, Workplace, prepare
from tser_cli.errors import ConfigError, Interrupted
from tser_cli.files import make_folder, write_text
from tser_cli.report import ablation, ablation_plots, console
from tser_cli.report.tables import write_csv

DEFAULT_SEEDS = 3
SECTION_KEYS = ("vary", "seeds", "baseline", "measure")
MEASURES = ("accuracy", "validation_accuracy")


@dataclass(frozen=True)
class Request:
    """What is compared: the cells, the varied keys, the baseline, the column that is compared."""

    cells: list[Cell]
    axes: list[str]
    baseline: dict[str, Any]
    measure: str

    @property
    def names(self) -> list[str]:
        """The varied keys as people write them."""
        return [label({axis: ""}).rstrip("=") for axis in self.axes]


@dataclass(frozen=True)
class Place:
    """Where an ablation writes, where teachers are looked for, how many cells run at once."""

    folder: Path
    runs_dir: Path
    jobs: int | None = None


def make_request(
    layers: list[recipe.Layer],
    section: dict[str, Any],
    vary: Sequence[str] | None,
    seeds: int | None,
    baseline: str | None,
) -> Request:
    """The request of flags over the recipe's [ablation] section. Raises ConfigError."""
    unknown = sorted(section.keys() - set(SECTION_KEYS))
    if unknown:
        raise ConfigError(f"[ablation]: unknown key {unknown[0]}; known: {', '.join(SECTION_KEYS)}")
    texts = list(vary) if vary else [str(text) for text in section.get("vary", [])]
    if not texts:
        raise ConfigError("nothing is varied: give --vary key=value,value or an [ablation] section")
    axes = parse_vary(texts)
    count = seeds if seeds is not None else section.get("seeds", DEFAULT_SEEDS)
    if not isinstance(count, int) or isinstance(count, bool):
        raise ConfigError(f"[ablation] seeds = {count!r}: it must be a whole number")
    measure = str(section.get("measure", "accuracy"))
    if measure not in MEASURES:
        raise ConfigError(f'[ablation] measure = "{measure}": use one of {", ".join(MEASURES)}')
    cells = expand(layers, axes, count)
    chosen = choose_baseline(cells, baseline or str(section.get("baseline", "")))
    if measure == MEASURES[1] and cells[0].config.data.validation_fraction == 0.0:
        raise ConfigError("[ablation] measure = validation_accuracy needs data.validation_fraction")
    return Request(cells, list(axes), chosen, measure)


def show_plan(request: Request, place: Place) -> None:
    """Print the cells, what of them is done, and the time that the rest will take."""
    out = console.output()
    done = 0
    seconds: dict[str, float] = {}
    total = 0.0
    for cell in request.cells:
        finished = find_cell(cell, place.folder) is not None
        done += finished
        out.print(f"{cell.label}, seed {cell.seed}{': finished' if finished else ''}")
        if not finished:
            kind = f"{cell.config.model.model_dump()}{cell.config.method.name}"
            if kind not in seconds:
                seconds[kind] = plan.training_seconds(cell.config, Options(place.runs_dir))
            total += seconds[kind]
    out.print(
        f"{len(request.cells)} runs, {done} finished; about {plan.duration(total)} of training, "
        "one after the other, measured on a few real steps"
    )


def ablate(request: Request, place: Place) -> None:
    """Run what is not finished, write the tables and figures, show the table.

    A failed cell is reported and does not stop the others. Raises Interrupted (running cells have
    saved their state), ConfigError where the folder belongs to another ablation.
    """
    claim_folder(request, place)
    messages = console.messages()
    with StopRequest(lambda text: messages.print(text, markup=False)) as stop:
        cells = share_teachers(request.cells, place)
        waiting = [cell for cell in cells if find_cell(cell, place.folder) is None]
        messages.print(f"{len(cells)} runs, {len(cells) - len(waiting)} finished before")
        jobs = place.jobs or max(1, torch.cuda.device_count())
        launcher = Launcher(place.folder, jobs, stop)
        failures = run_cells(waiting, launcher, jobs, lambda: write_tables(request, cells, place))
        if stop.requested:
            raise Interrupted(stop.signal or 15)
    summary = write_tables(request, cells, place)
    ablation_plots.draw_all(place.folder)
    out = console.output()
    out.print(ablation.table(place.folder.name, summary, request.axes, request.names))
    for text in failures:
        out.print(f"failed: {text}", markup=False, soft_wrap=True)
    for name in ("ablation.csv", "summary.csv", "figures"):
        out.print(f"written: {place.folder / name}", soft_wrap=True)


def run_cells(
    cells: list[Cell], launcher: Launcher, jobs: int, after: Callable[[], Any]
) -> list[str]:
    """Run cells, `jobs` at a time; tables are kept up to date; returns what failed."""
    failures = []
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for cell, problem in pool.map(launcher.run, cells):
            if problem:
                failures.append(f"{cell.label}, seed {cell.seed}: {problem}")
            after()
    return failures


def claim_folder(request: Request, place: Place) -> None:
    """Write plan.json, or raise ConfigError where it tells of other settings."""
    make_folder(place.folder)
    first = request.cells[0].config.model_dump(mode="json")
    for axis in request.axes:
        section, key = axis.split(".")
        first[section].pop(key, None)
    first["training"].pop("seed")
    if "method.name" in request.axes:
        first.pop("method")  # it has the own weights of whichever method stands first
    document = {"settings": first, "axes": request.axes}
    path = place.folder / "plan.json"
    if not path.exists():
        write_text(path, json.dumps(document, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read ({error}); choose another --output") from error
    if before != document:
        raise ConfigError(
            f"{place.folder} belongs to an ablation with other settings; choose another --output, "
            "or remove the folder"
        )


def share_teachers(cells: list[Cell], place: Place) -> list[Cell]:
    """The cells with `model.teacher` as the path of one run or file; missing ones are trained."""
    paths: dict[str, str] = {}
    shared = []
    for cell in cells:
        name = cell.config.model.teacher
        if name not in paths:
            paths[name] = teacher_path(prepare(cell.config), place)
        changed = cell.config.updated({"model.teacher": paths[name]})
        shared.append(Cell(cell.varied, cell.seed, changed))
    return shared


def teacher_path(at: Workplace, place: Place) -> str:
    """Where the teacher of these settings lies, trained first if there is none."""
    name = at.config.model.teacher
    if Path(name).expanduser().exists():
        return str(Path(name).expanduser().resolve())
    teachers.check_architecture(name)
    own = place.folder / "runs"
    for folder in (own, place.runs_dir):
        run = teachers.newest_teacher(at.config, folder)
        if run is not None:
            return str(run.folder.resolve())
    with_teacher = at.config.updated({"method.name": "kd"})
    provide_teacher(Workplace(with_teacher, at.dataset, at.runtime, at.progress), Options(own))
    run = teachers.newest_teacher(at.config, own)
    return str(run.folder.resolve()) if run else name


def write_tables(request: Request, cells: list[Cell], place: Place) -> list[dict[str, Any]]:
    """ablation.csv and summary.csv of what is there; returns the rows of the latter."""
    steps = max(cell.config.model.timesteps for cell in cells)
    rows = [
        {**cell.varied, "seed": cell.seed, **outcome(find_cell(cell, place.folder), steps)}
        for cell in cells
    ]
    write_csv(place.folder / "ablation.csv", rows, list(rows[0]))
    summary = ablation.summarise(rows, request.axes, request.baseline, request.measure)
    ablation.summary_csv(place.folder / "summary.csv", summary, request.axes)
    return summary
