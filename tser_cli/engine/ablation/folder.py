"""The folder of an ablation: its lock, its plan of cells and teachers, and its cells' folders."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from tser_cli.base import files
from tser_cli.base.errors import ConfigError, DamagedFileError, RunError, warn_once
from tser_cli.engine.ablation.grid import SEED, Cell, Request
from tser_cli.engine.runs import teachers
from tser_cli.engine.runs.find import existing_path, run_folders
from tser_cli.engine.runs.folder import Run, time_of
from tser_cli.engine.runs.record import DAMAGED, FINISHED, RunRecord, read_record
from tser_cli.report.predictions import PREDICTIONS, Predictions, read_predictions
from tser_cli.settings import registry
from tser_cli.settings.config import Config, keys

SETTINGS = "cell.toml"
LOG = "cell.log"


def write_settings(cell: Cell, folder: Path) -> Path:
    """Write all settings of a cell into its folder, where it reads them; return that folder.

    Paths are written whole, so that the cell may run from another working directory.
    """
    home, data_dir = cell_folder(cell, folder).resolve(), cell.config.data.dir
    if data_dir:
        cell = cell.updated({"data.dir": str(Path(data_dir).expanduser().resolve())})
    files.make_folder(home)
    files.write_text(home / SETTINGS, tomli_w.dumps(cell.config.model_dump(mode="json")))
    return home


def arguments(home: Path) -> list[str]:
    """Return the `tser` command line of the cell in `home`: it is resumed where it was stopped."""
    settings = str(home / SETTINGS)
    return ["distill", "--recipe", settings, "--runs-dir", str(home), "--resume", "auto"]


def cell_name(cell: Cell) -> str:
    """Return a name such as `method=kd_temperature=4_s0`.

    Characters that a file name may not have are replaced, and a checksum is added.
    """
    name = f"{cell.label.replace(', ', '_')}_s{cell.seed}"
    # file systems allow 255 bytes a name; the checksum tells apart what is cut alike
    safe = re.sub(r"[^\w.=+-]", "-", name, flags=re.ASCII)[:200]
    return safe if safe == name else f"{safe}-{zlib.crc32(name.encode()):08x}"


def cell_folder(cell: Cell, folder: Path) -> Path:
    """Return where a cell's run lies, by its varied settings and seed."""
    return folder / "cells" / cell_name(cell)


@dataclass(frozen=True)
class CellRun:
    """What the folder of a cell says: the state of its run, and its record where it has finished.

    `state`: as in status.json; "missing" where there is no run, "damaged" where the result of a
    finished one can't be read. Such a cell is trained again.
    """

    state: str
    record: RunRecord | None = None

    @cached_property
    def right(self) -> NDArray[np.bool_] | None:
        """Return which test images the network gets right with all its steps, None if not kept."""
        found = self.predictions()
        return found.right() if found else None

    def predictions(self) -> Predictions | None:
        """Read what the network answered for the test images; None where it was not kept.

        Damaged predictions are named in a warning. They are not held in memory.
        """
        try:
            return read_predictions(self.record.folder / PREDICTIONS) if self.record else None
        except RunError as error:
            warn_once(str(error))
            return None


# By folder: which status files there were, and what the cell's run said. The tables are written
# after every cell. To read all cells each time would cost more with each cell that has finished.
_read_before: dict[Path, tuple[object, CellRun]] = {}


def read_cell(cell: Cell, folder: Path) -> CellRun:
    """Return what a cell's folder says; it is read again only once a status.json has changed.

    `folder` is the ablation's. A run whose result can't be read is named in a warning.
    """
    home = cell_folder(cell, folder).absolute()
    runs = run_folders(home, "student")
    versions = tuple((run.name, *_version(run.folder / "status.json")) for run in runs)
    before = _read_before.get(home)
    if before is None or before[0] != versions:
        before = versions, _read_cell(cell, [read_record(run) for run in runs])
        _read_before[home] = before
    return before[1]


def _version(path: Path) -> tuple[int, ...]:
    # Files of ours are written whole and renamed: another inode each time, or a later time.
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return ()


def _read_cell(cell: Cell, records: Sequence[RunRecord]) -> CellRun:
    finished = [one for one in records if one.status.get("state") == FINISHED]
    # the newest: a cell that was trained again replaces what was there
    newest = max(finished, key=lambda one: time_of(one.status, FINISHED), default=None)
    if newest is not None and newest.result is not None and not newest.trouble:
        return CellRun(FINISHED, newest)
    for record in records:
        if record.trouble or record is newest:
            why = record.trouble or f"the result of {record.folder} is damaged"
            warn_once(f"{cell.title} counts as not trained: {why}")
    begun = [one for one in records if one.status]
    last = max(begun, key=lambda one: time_of(one.status, "started"), default=None)
    if last is None:
        return CellRun("missing")
    state = last.status.get("state")
    return CellRun(DAMAGED if state == FINISHED else str(state))


def find_cell(cell: Cell, folder: Path) -> Run | None:
    """Return the finished run of a cell, None where there is none yet."""
    record = read_cell(cell, folder).record
    return record.run if record else None


class PlannedTeacher(BaseModel):
    """The file of a teacher that cells share, and its SHA-256 when it was chosen."""

    file: str
    sha256: str


class RecordedPlan(BaseModel):
    """What plan.json says: what is varied, the settings of each cell, the teacher of each key."""

    axes: list[str] = []
    cells: dict[str, dict[str, Any]] = {}
    teachers: dict[str, PlannedTeacher] = {}


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


def hold(place: AblationFolder) -> AbstractContextManager[Any]:
    """Keep the ablation's folder for this process alone. Raises RunError if another has it."""
    files.make_folder(place.folder)
    try:
        # two commands would train the same cells, and overwrite each other's tables
        return files.hold_lock(place.folder / ".lock")
    except filelock.Timeout:
        raise RunError(
            f"{place.folder} is in use by another tser ablate. Wait for it, or stop it first"
        ) from None


def read_plan(place: AblationFolder) -> RecordedPlan:
    """Return what plan.json says, nothing where there is none. Raises ConfigError."""
    # lexists: a link that leads nowhere is damage, not an ablation without a plan
    if not os.path.lexists(place.plan):
        return RecordedPlan()
    try:
        return RecordedPlan.model_validate(files.read_json(place.plan, 2**28))
    except (DamagedFileError, ValidationError) as error:
        why = error if isinstance(error, DamagedFileError) else "its entries are none of tser's"
        raise ConfigError(
            f"the plan of this ablation, {place.plan}, is damaged ({why}). Restore it from a "
            "copy, or choose another --output"
        ) from error


def write_plan(place: AblationFolder, plan: RecordedPlan) -> None:
    """Write plan.json. Raises RunError."""
    files.make_folder(place.folder)
    files.write_json(place.plan, plan.model_dump())


def checked_plan(request: Request, place: AblationFolder) -> RecordedPlan:
    """Return the plan with the cells of `request` added to those that are there.

    Raises ConfigError where it records other settings: more values, cells or seeds may join an
    ablation, nothing else. Raises it too where a teacher is neither a path nor an ANN architecture.
    """
    plan = read_plan(place)
    # a mistyped teacher is reported before any cell is trained
    for name in {c.config.model.teacher for c in request.cells if needs_teacher(c)}:
        if existing_path(name) is None:
            teachers.check_architecture(name)
    if any(c.config.training.batch_size == 0 for c in request.cells):
        raise ConfigError(
            "training.batch_size = auto would give the cells batches of different sizes, and "
            "their differences would not be those of what is varied: name a size (--set "
            "training.batch_size=128)"
        )
    # cells of other axes would have no place in the tables of this one
    if plan.axes and plan.axes != request.axes:
        raise _belongs_elsewhere(place, [f"it varies {', '.join(plan.axes)}"])
    for cell in request.cells:
        # what its result depends on, but for the seed
        now = {key: of for key, of in cell.config.result_settings().items() if key != SEED}
        # A setting that is newer than the plan was at its default then.
        usual = {key: of for key, of in keys(cell.config.method.name).items() if key in now}
        before = usual | plan.cells.setdefault(cell.label, now)
        if before != now:
            changed = [key for key in {**now, **before} if before.get(key) != now.get(key)]
            listed = [f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed[:5]]
            raise _belongs_elsewhere(place, listed)
    plan.axes = request.axes
    return plan


def _belongs_elsewhere(place: AblationFolder, listed: list[str]) -> ConfigError:
    return ConfigError(
        f"{place.folder} belongs to an ablation with other settings ({'; '.join(listed)}). Choose "
        "another --output, or remove the folder"
    )


def teacher_key(config: Config) -> str:
    """Return what cells share a teacher by."""
    # the splits count: a teacher trained on what a student holds out would help it there
    data = config.data
    parts = [data.name, config.model.teacher, str(data.validation_fraction)]
    if data.split != "first":
        parts.append(f"{data.split} {data.test_fraction}")
    return ", ".join(parts)


def shared_teacher(plan: RecordedPlan, key: str) -> str | None:
    """Return the file of the teacher that the ablation began with, None where it has none yet.

    Raises ConfigError where the file is gone or has changed: the cells would not be comparable.
    """
    teacher = plan.teachers.get(key)
    if teacher is None:
        return None
    path = Path(teacher.file)
    if not files.is_file(path) or files.sha256(path.read_bytes()) != teacher.sha256:
        raise ConfigError(
            f"{path}, the teacher that this ablation began with, is gone or has changed. Put it "
            "back, or choose another --output"
        )
    return str(path)


def needs_teacher(cell: Cell) -> bool:
    """Return whether the cell's method learns from a teacher."""
    return registry.METHODS[cell.config.method.name].needs_teacher


def has_teacher(config: Config, place: AblationFolder) -> bool:
    """Return whether the teacher of `config` is there: none has to be trained first."""
    return (
        existing_path(config.model.teacher) is not None
        or config.data.name == teachers.PRETRAINED_ON
        or teachers.newest_teacher(config, place.runs_dir) is not None
    )
