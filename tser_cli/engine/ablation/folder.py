"""The folder of an ablation: its lock, and its plan of cells and teachers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from tser_cli import registry
from tser_cli.config import Config, keys
from tser_cli.engine.ablation.grid import SEED, Cell, Request
from tser_cli.engine.runtime.whole_paths import existing_path
from tser_cli.engine.teachers import find
from tser_cli.engine.teachers.fits import check_architecture
from tser_cli.errors import ConfigError, DamagedFileError, RunError
from tser_cli.files import hold_lock, is_file, make_folder, read_json, sha256, write_json
from tser_cli.old_settings import of_today

SHOWN = 5
PLAN_BYTES = 2**28
TEACHER_KEYS = {"file", "sha256"}
PLAN_TYPES = {"axes": list, "cells": dict, "teachers": dict}


@dataclass(frozen=True)
class AblationFolder:
    """Where an ablation writes, where teachers are looked for, and how its cells run.

    `jobs`: how many cells run at once (None: the default). `address`: the Ray cluster that they run
    on; None is this machine.
    """

    folder: Path
    runs_dir: Path
    jobs: int | None = None
    address: str | None = None

    def with_jobs_for(self, cells: int) -> AblationFolder:
        """Return the same with no more jobs than there are cells."""
        return replace(self, jobs=self.jobs and max(1, min(self.jobs, cells)))

    @property
    def plan(self) -> Path:
        """Return the file that records the ablation's cells and teachers."""
        return self.folder / "plan.json"

    @property
    def own_runs(self) -> Path:
        """Return where ablations used to train their teachers; what lies there is taken."""
        return self.folder / "runs"


@contextmanager
def hold(place: AblationFolder) -> Iterator[None]:
    """Keep the ablation's folder for this process alone. Raises RunError if another has it."""
    make_folder(place.folder)
    try:
        lock = hold_lock(place.folder / ".lock")
    except filelock.Timeout:
        raise RunError(
            f"{place.folder} is in use by another tser ablate. Wait for it, or stop it first"
        ) from None
    with lock:
        yield


def read_plan(place: AblationFolder) -> dict[str, Any]:
    """Return plan.json, or one without cells where there is none. Raises ConfigError."""
    empty: dict[str, Any] = {"axes": [], "cells": {}, "teachers": {}}
    if not os.path.lexists(place.plan):
        return empty
    try:
        document = {**empty, **read_json(place.plan, PLAN_BYTES, PLAN_TYPES)}
        _check_entries(document)
    except (DamagedFileError, ValueError) as error:
        raise ConfigError(
            f"the plan of this ablation, {place.plan}, is damaged ({error}). Restore it from a "
            "copy, or choose another --output"
        ) from error
    return document


def _check_entries(document: dict[str, Any]) -> None:
    records = document["teachers"].values()
    sound = [isinstance(record, dict) and record.keys() >= TEACHER_KEYS for record in records]
    texts = [isinstance(axis, str) for axis in document["axes"]]
    cells = [isinstance(settings, dict) for settings in document["cells"].values()]
    if not all([*sound, *texts, *cells]):
        raise ValueError("its entries are none of tser's")


def write_plan(place: AblationFolder, document: dict[str, Any]) -> None:
    """Write plan.json. Raises RunError."""
    make_folder(place.folder)
    write_json(place.plan, document)


def settings_of(cell: Cell) -> dict[str, Any]:
    """Return what a cell's result depends on, by dotted key, without the seed."""
    return {key: value for key, value in cell.config.result_settings().items() if key != SEED}


def checked_plan(request: Request, place: AblationFolder) -> dict[str, Any]:
    """Return plan.json with the cells of `request` added to those that are there.

    Raises ConfigError where it records other settings: more values, cells or seeds may join an
    ablation, nothing else. Raises it too where a teacher is neither a path nor an ANN architecture.
    """
    document = read_plan(place)
    for name in {c.config.model.teacher for c in request.cells if needs_teacher(c)}:
        if existing_path(name) is None:
            check_architecture(name)
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
        # A setting that is newer than the plan was at its default then.
        usual = {key: of for key, of in keys(cell.config.method.name).items() if key in now}
        before = usual | of_today(document["cells"].setdefault(cell.label, now))
        if before != now:
            changed = [key for key in {**now, **before} if before.get(key) != now.get(key)]
            listed = [f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed[:SHOWN]]
            raise _belongs_elsewhere(place, listed)
    return {**document, "axes": request.axes}


def _belongs_elsewhere(place: AblationFolder, listed: list[str]) -> ConfigError:
    return ConfigError(
        f"{place.folder} belongs to an ablation with other settings ({'; '.join(listed)}). Choose "
        "another --output, or remove the folder"
    )


def teacher_key(config: Config) -> str:
    """Return what cells share a teacher by."""
    return f"{config.data.name}, {config.model.teacher}, {config.data.validation_fraction}"


def shared_teacher(document: dict[str, Any], key: str) -> str | None:
    """Return the file of the teacher that the ablation began with, None where it has none yet.

    Raises ConfigError where the file is gone or has changed: the cells would not be comparable.
    """
    record = document["teachers"].get(key)
    if record is None:
        return None
    path = Path(str(record["file"]))
    if not is_file(path) or sha256(path.read_bytes()) != record["sha256"]:
        raise ConfigError(
            f"{path}, the teacher that this ablation began with, is gone or has changed. Put it "
            "back, or choose another --output"
        )
    return str(path)


def needs_teacher(cell: Cell) -> bool:
    """Return whether the cell's method learns from a teacher."""
    return registry.METHODS[cell.config.method.name].needs_teacher


def find_folder(config: Config, place: AblationFolder) -> Path | None:
    """Return the runs folder that the teacher of `config` is found from, None where there is none
    yet.
    """
    if existing_path(config.model.teacher) is not None:
        return place.own_runs
    for folder in (place.own_runs, place.runs_dir):
        if find.newest_teacher(config, folder) is not None:
            return folder
    return place.own_runs if config.data.name == find.PRETRAINED_ON else None
