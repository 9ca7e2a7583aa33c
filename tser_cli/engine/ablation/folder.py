"""The folder of one cell of an ablation: its settings, its run, and what came out of that.

The folder of an ablation: its lock, and its plan of cells and teachers.

Where the numbers of an ablation's run come from: code, threads and settings.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from tser_cli.base.errors import ConfigError, DamagedFileError, RunError, warn_once
from tser_cli.base.files import (
    hold_lock,
    is_file,
    make_folder,
    read_json,
    sha256,
    write_json,
    write_text,
)
from tser_cli.engine.ablation.grid import SEED, Cell, Request
from tser_cli.engine.runs import teachers
from tser_cli.engine.runs.find import all_runs, existing_path, newest_finished
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.record import RESULT, read_result, recorded
from tser_cli.engine.runs.teachers import check_architecture
from tser_cli.report.csv_files import ALL, ENERGY, INTEGER, PER_TIMESTEP, TOTAL, read_table
from tser_cli.settings import registry
from tser_cli.settings.config import Config, keys

SETTINGS = "cell.toml"
LOG = "cell.log"


def write_settings(cell: Cell, folder: Path) -> Path:
    """Write all settings of a cell into its folder, where it reads them; return that folder.

    Paths are written whole, so that the cell may run from another working directory.
    """
    home, config = cell_folder(cell, folder).resolve(), cell.config
    if config.data.dir:
        config = config.updated({"data.dir": str(Path(config.data.dir).expanduser().resolve())})
    make_folder(home)
    write_text(home / SETTINGS, tomli_w.dumps(config.model_dump(mode="json")))
    return home


def arguments(home: Path) -> list[str]:
    """Return the `tser` command line of the cell in `home`: it goes on where it was stopped."""
    return [
        "distill",
        *("--recipe", str(home / SETTINGS)),
        *("--runs-dir", str(home)),
        *("--resume", "auto"),
    ]


def cell_name(cell: Cell) -> str:
    """Return a name such as `method=kd_temperature=4_s0`.

    Characters that a file name may not have are replaced, and a checksum is added.
    """
    name = f"{cell.label.replace(', ', '_')}_s{cell.seed}"
    safe = re.sub(r"[^\w.=+-]", "-", name, flags=re.ASCII)[:200]
    return safe if safe == name else f"{safe}-{zlib.crc32(name.encode()):08x}"


def cell_folder(cell: Cell, folder: Path) -> Path:
    """Return where a cell's run lies, by its varied settings and seed."""
    return folder / "cells" / cell_name(cell)


def find_cell(cell: Cell, folder: Path) -> Run | None:
    """Return the finished run of a cell, None where there is none yet.

    One whose result can't be read is named in a warning and is as good as none: it is trained
    again.
    """
    run = newest_finished(cell_folder(cell, folder), "student")
    try:
        if run is not None:
            result_of(run)
            run.environment()
    except RunError as error:
        warn_once(f"{cell.title} counts as not trained: {error}")
        return None
    return run


def result_row(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the columns of ablation.csv that a cell's run fills, the varied settings aside.

    `folder` is the ablation's, and the column of that name is relative to it.
    """
    row = {"seed": cell.seed, "state": "missing", "folder": f"cells/{cell_name(cell)}"}
    run = find_cell(cell, folder)
    if run is not None:
        return {**row, "state": "finished", **result_of(run)}
    begun = next(all_runs(cell_folder(cell, folder), "student"), None)
    if begun is None:
        return row
    state = begun.status().get("state")
    return {**row, "state": "damaged" if state == "finished" else state}


def result_of(run: Run) -> dict[str, Any]:
    """Return what came out of a finished run. `seconds` are of training, in all its parts.

    Raises RunError where that can't be read, or is none: an accuracy that is no fraction.
    """
    recorded_there = RESULT in run.status()
    try:
        row = _result_as_recorded(run) if recorded_there else _result_from_tables(run)
        accuracies = [v for k, v in row.items() if "accuracy" in k and v is not None]
        if row["accuracy"] is None or not all(0.0 <= value <= 1.0 for value in accuracies):
            raise ValueError("an accuracy is no fraction")
    except (ArithmeticError, KeyError, OSError, TypeError, ValueError) as error:
        raise RunError(f"the result of {run.folder} is damaged ({error})") from error
    return row


def _result_as_recorded(run: Run) -> dict[str, Any]:
    result = read_result(run)
    steps = result.per_timestep
    if [row["t"] for row in steps] != list(range(1, result.timesteps + 1)):
        raise ValueError("its time steps do not follow each other")
    return {
        "accuracy": result.accuracy,
        "teacher_accuracy": result.teacher_accuracy,
        "best_validation_accuracy": result.best_validation_accuracy,
        **{f"accuracy_at_{row['t']}": row["accuracy_at_t"] for row in steps},
        **{f"accuracy_cumulative_{row['t']}": row["accuracy_cumulative"] for row in steps},
        "energy_pj": result.energy_pj,
        "seconds": result.seconds,
    }


def _result_from_tables(run: Run) -> dict[str, Any]:
    """Return the same for a run from before results were recorded, out of its CSV files."""
    known = recorded(run)
    epochs = read_table(run.folder / "metrics.csv", {"epoch": INTEGER})
    steps = read_table(run.folder / "per_timestep.csv", PER_TIMESTEP).set_index("t")
    energy = read_table(run.folder / "energy.csv", ENERGY).set_index(["layer", "t"])
    held_out = epochs["validation_accuracy"].dropna()
    return {
        "accuracy": known.get("accuracy"),
        "teacher_accuracy": known.get("teacher_accuracy"),
        "best_validation_accuracy": float(held_out.max()) if len(held_out) else None,
        **{f"accuracy_at_{t}": value for t, value in steps["accuracy_at_t"].items()},
        **{f"accuracy_cumulative_{t}": value for t, value in steps["accuracy_cumulative"].items()},
        "energy_pj": energy["energy_pj"].to_dict()[TOTAL, ALL],
        "seconds": sum(epochs["seconds"].tolist()),
    }


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
        before = usual | document["cells"].setdefault(cell.label, now)
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
        if teachers.newest_teacher(config, folder) is not None:
            return folder
    return place.own_runs if config.data.name == teachers.PRETRAINED_ON else None


METHOD, TEMPERATURE = "method.", "method.temperature"


def provenance(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the columns `csv_files.PROVENANCE` of a cell; code and threads only once it finished.

    `weights` are the method's own settings, `settings` all others that are not tser's defaults and
    not varied. On CPUs the threads count too: sums of floats depend on their order.
    """
    run = find_cell(cell, folder)
    return {**settings_in_words(cell), **(code_of(run.environment()) if run else {})}


def code_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what environment.json says of the code; a version where it was no git checkout."""
    git = environment.get("git") or {}
    commit = f"{git['commit']}{'+changes' if git.get('changed') else ''}" if git else ""
    return {
        "commit": commit or f"version {environment.get('tser')}",
        "torch": environment.get("packages", {}).get("torch"),
        "threads": environment.get("threads"),
    }


def settings_in_words(cell: Cell) -> dict[str, Any]:
    """Return `temperature`, `weights` and `settings` of a cell, as `key=value; key=value`."""
    now, usual = settings_of(cell), settings_of(Cell({}, 0, Config()))
    weights = {
        key.removeprefix(METHOD): value
        for key, value in now.items()
        if key.startswith(METHOD) and key not in (TEMPERATURE, "method.name")
    }
    others = {
        key: value
        for key, value in now.items()
        if value != usual.get(key)
        and key not in cell.varied
        and (not key.startswith(METHOD) or key == "method.name")
    }
    return {
        "temperature": now.get(TEMPERATURE),
        "weights": in_words(weights),
        "settings": in_words(others),
    }


def in_words(settings: Mapping[str, Any]) -> str:
    """Return `key=value; key=value`."""
    return "; ".join(f"{key}={value}" for key, value in settings.items())
