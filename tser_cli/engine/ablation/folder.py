"""What an ablation's folder says of it, and --dry-run: what it would do and how long it takes."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tser_cli import registry
from tser_cli.config import Config
from tser_cli.data.loaders import build_train_loader
from tser_cli.engine.ablation.cell_folder import default_jobs, find_cell, threads_of
from tser_cli.engine.ablation.grid import SEED, Cell, Request
from tser_cli.engine.commands import dry_run
from tser_cli.engine.commands.distill import settle_batch
from tser_cli.engine.runs import model_files
from tser_cli.engine.runtime.context import Options, prepare
from tser_cli.engine.teachers import find
from tser_cli.engine.training.task import classification
from tser_cli.errors import ConfigError
from tser_cli.files import make_folder, sha256, write_text
from tser_cli.report import console

SHOWN = 5


@dataclass(frozen=True)
class Place:
    """Where an ablation writes, where teachers are looked for, and how its cells run.

    `jobs` cells at once (None: the default), on the Ray cluster at `address` or on this machine.
    """

    folder: Path
    runs_dir: Path
    jobs: int | None = None
    address: str | None = None

    @property
    def plan(self) -> Path:
        """The file that tells an ablation's cells and teachers."""
        return self.folder / "plan.json"

    @property
    def own_runs(self) -> Path:
        """Where teachers are trained that are not found elsewhere."""
        return self.folder / "runs"


def read_plan(place: Place) -> dict[str, Any]:
    """plan.json, or one without cells where there is none. Raises ConfigError."""
    empty: dict[str, Any] = {"axes": [], "cells": {}, "teachers": {}}
    if not place.plan.exists():
        return empty
    try:
        return {**empty, **json.loads(place.plan.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{place.plan} can't be read ({error}); choose another --output"
        ) from error


def write_plan(place: Place, document: dict[str, Any]) -> None:
    """Write plan.json. Raises RunError."""
    make_folder(place.folder)
    write_text(place.plan, json.dumps(document, indent=1) + "\n")


def settings_of(cell: Cell) -> dict[str, Any]:
    """What a cell's result depends on, by dotted key, without the seed."""
    return {key: value for key, value in cell.config.result_settings().items() if key != SEED}


def checked_plan(request: Request, place: Place) -> dict[str, Any]:
    """plan.json with the cells of `request` added to those that are there.

    Raises ConfigError where it tells of other settings (more values, cells or seeds may join an
    ablation, nothing else), or where a teacher is neither a path nor an ANN architecture.
    """
    document = read_plan(place)
    for name in {c.config.model.teacher for c in request.cells if needs_teacher(c)}:
        if find.existing_path(name) is None:
            find.check_architecture(name)
    if any(c.config.training.batch_size == 0 for c in request.cells):
        raise ConfigError(
            "training.batch_size = auto would give the cells batches of different sizes, and "
            "their differences would not be those of what is varied: name a size (--set "
            "training.batch_size=128)"
        )
    if document["axes"] and document["axes"] != request.axes:
        raise _belongs_elsewhere(place, [f"it varies {', '.join(document['axes'])}"])
    for cell in request.cells:
        now = settings_of(cell)
        before = document["cells"].setdefault(cell.label, now)
        if before != now:
            changed = [key for key in now if before.get(key) != now[key]]
            listed = [f"{key}: {before.get(key)!r} -> {now[key]!r}" for key in changed[:SHOWN]]
            raise _belongs_elsewhere(place, listed)
    return {**document, "axes": request.axes}


def _belongs_elsewhere(place: Place, listed: list[str]) -> ConfigError:
    return ConfigError(
        f"{place.folder} belongs to an ablation with other settings ({'; '.join(listed)}). Choose "
        "another --output, or remove the folder"
    )


def teacher_key(config: Config) -> str:
    """What cells share a teacher by."""
    return f"{config.data.name}, {config.model.teacher}, {config.data.validation_fraction}"


def recorded_teacher(document: dict[str, Any], key: str) -> str | None:
    """The file of the teacher that the ablation began with, None where it has none yet.

    Raises ConfigError where the file is gone or has changed: the cells would not be comparable.
    """
    record = document["teachers"].get(key)
    if record is None:
        return None
    path = Path(record["file"])
    if not path.is_file() or sha256(path.read_bytes()) != record["sha256"]:
        raise ConfigError(
            f"{path}, the teacher that this ablation began with, is gone or has changed. Put it "
            "back, or choose another --output"
        )
    return str(path)


def needs_teacher(cell: Cell) -> bool:
    """Whether the cell's method learns from a teacher."""
    return registry.METHODS[cell.config.method.name].needs_teacher


def show_plan(request: Request, place: Place) -> None:
    """Print the cells, what of them is done, and the time that the rest will take.

    Writes nothing. Raises ConfigError as the ablation itself would.
    """
    document, out = checked_plan(request, place), console.output()
    waiting = []
    for cell in request.cells:
        finished = find_cell(cell, place.folder) is not None
        out.print(f"{cell.title}{': finished' if finished else ''}", markup=False, soft_wrap=True)
        if not finished:
            waiting.append(cell)
    jobs = place.jobs or (1 if place.address else default_jobs(waiting))
    seconds = _teachers_seconds(waiting, document, place)
    seconds += makespan(_cells_seconds(waiting, place, jobs), jobs)
    out.print(
        f"{len(request.cells)} runs, {len(request.cells) - len(waiting)} finished; about "
        f"{dry_run.duration(seconds)} of training, {_side_by_side(place, jobs)}, measured on a few "
        "real steps",
        soft_wrap=True,
    )


def _side_by_side(place: Place, jobs: int) -> str:
    if place.address:
        fewer = "" if place.jobs else ", less by as many as the cluster has room for"
        return f"{jobs} at a time on machines like this one{fewer}"
    return "one after the other" if jobs == 1 else f"{jobs} side by side"


def makespan(durations: Sequence[float], jobs: int) -> float:
    """When the last of these is done, begun in this order by `jobs` workers as they come free."""
    free_at = [0.0] * jobs
    for duration in durations:
        heapq.heappush(free_at, heapq.heappop(free_at) + duration)
    return max(free_at)


def _cells_seconds(waiting: list[Cell], place: Place, jobs: int) -> list[float]:
    """Of each cell; measured with the threads that it will have."""
    known: dict[str, float] = {}
    seconds = []
    for cell in waiting:
        # what a step costs depends on the method, not on its weights
        parts = cell.config.updated({SEED: 0}).model_dump(mode="json", exclude={"method"})
        kind = json.dumps([parts, cell.config.method.name])
        if kind not in known:
            with _threads(1 if place.address else jobs):
                known[kind] = dry_run.training_seconds(cell.config, Options(place.runs_dir))
        seconds.append(known[kind])
    return seconds


@contextmanager
def _threads(jobs: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of(jobs))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _teachers_seconds(waiting: list[Cell], document: dict[str, Any], place: Place) -> float:
    firsts = {teacher_key(cell.config): cell.config for cell in waiting if needs_teacher(cell)}
    total = 0.0
    for key, config in firsts.items():
        if recorded_teacher(document, key) or find_folder(config, place) is not None:
            continue
        settings = find.teacher_config(config)
        name, at = settings.model.teacher, prepare(settings)
        task = classification(model_files.build(name, at.dataset.spec, settings, False), settings)
        at = settle_batch(task, "teacher", at, Options(place.runs_dir))
        steps = build_train_loader(at.dataset, at.config).steps_per_epoch
        total += dry_run.step_seconds(task, at) * steps * settings.training.epochs
        console.output().print(
            f"a {name} is trained first, {settings.training.epochs} epochs", soft_wrap=True
        )
    return total


def find_folder(config: Config, place: Place) -> Path | None:
    """The runs folder that the teacher of `config` is found from, None where there is none yet."""
    if find.existing_path(config.model.teacher) is not None:
        return place.own_runs
    for folder in (place.own_runs, place.runs_dir):
        if find.newest_teacher(config, folder) is not None:
            return folder
    return place.own_runs if config.data.name == find.PRETRAINED_ON else None
