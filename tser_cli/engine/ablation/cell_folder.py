"""Running one cell of an ablation as `tser distill` in a process of its own."""

from __future__ import annotations

import os
import queue
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import tomli_w
import torch

from tser_cli.engine.ablation import cell_process
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.runs.run_folder import Run, all_runs, newest_finished
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.errors import TserError
from tser_cli.files import make_folder, write_text
from tser_cli.report.csv_files import read_csv

SETTINGS = "cell.toml"
LOG = "cell.log"
NOT_STARTED = "not started"
TOTAL = "TOTAL"


class Launcher:
    """Runs cells on this machine, `jobs` side by side: a GPU each if there are any."""

    def __init__(self, folder: Path, jobs: int, stop: StopRequest) -> None:
        self._folder = folder
        self._stop = stop
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)
        self._jobs = jobs

    def run(self, cell: Cell) -> str:
        """Run a cell to its end; returns what went wrong, "" where nothing did."""
        slot = self._slots.get()
        try:
            if self._stop.requested:
                return NOT_STARTED
            home = write_settings(cell, self._folder)
            environment = cell_environment(cell, slot, self._jobs)
            return cell_process.run(
                arguments(home), home / LOG, environment, lambda: self._stop.requested
            )
        except (TserError, OSError) as error:
            return str(error)
        finally:
            self._slots.put(slot)


def write_settings(cell: Cell, folder: Path) -> Path:
    """Write all settings of a cell into its folder, where it reads them; returns that folder.

    Paths are written whole, so that the cell may run from another working directory.
    """
    home, config = cell_folder(cell, folder).resolve(), cell.config
    if config.data.dir:
        config = config.updated({"data.dir": str(Path(config.data.dir).expanduser().resolve())})
    make_folder(home)
    write_text(home / SETTINGS, tomli_w.dumps(config.model_dump(mode="json")))
    return home


def arguments(home: Path) -> list[str]:
    """The `tser` command line of the cell in `home`: it goes on where it was stopped."""
    return [
        "distill",
        *("--recipe", str(home / SETTINGS)),
        *("--runs-dir", str(home)),
        *("--resume", "auto"),
    ]


def cell_environment(cell: Cell, slot: int, jobs: int) -> dict[str, str]:
    """The variables of a cell's process: its share of the threads, and its GPU among several."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(threads_of(jobs)))
    if jobs > 1 and cell.config.training.device in ("auto", "cuda") and torch.cuda.is_available():
        listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = listed.split(",") if listed else [str(n) for n in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def threads_of(jobs: int) -> int:
    """The threads of one of `jobs` cells side by side: OMP_NUM_THREADS, else its share."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else max(1, cores() // jobs)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def default_jobs(cells: list[Cell]) -> int:
    """As many cells side by side as GPUs, where the cells are free to use any; else one."""
    free = all(cell.config.training.device in ("auto", "cuda") for cell in cells)
    return max(1, torch.cuda.device_count()) if free else 1


def cell_name(cell: Cell) -> str:
    """`method=kd_temperature=4_s0`; a name that no file may have gets a checksum."""
    name = f"{cell.label.replace(', ', '_')}_s{cell.seed}"
    safe = re.sub(r"[^\w.=+-]", "-", name, flags=re.ASCII)[:200]
    return safe if safe == name else f"{safe}-{zlib.crc32(name.encode()):08x}"


def cell_folder(cell: Cell, folder: Path) -> Path:
    """Where a cell's run lies, by its varied settings and seed."""
    return folder / "cells" / cell_name(cell)


def find_cell(cell: Cell, folder: Path) -> Run | None:
    """The finished run of a cell, None where there is none yet."""
    return newest_finished(cell_folder(cell, folder), "student")


def outcome(cell: Cell, folder: Path, steps: int) -> dict[str, Any]:
    """The columns of ablation.csv that a cell's run fills; `steps` is the largest T of all.

    `seconds` are of training, in all its parts; `folder` is relative to the ablation's.
    """
    row: dict[str, Any] = {"seed": cell.seed, "state": "missing", "accuracy": None}
    row |= {"teacher_accuracy": None, "validation_accuracy": None}
    row |= {f"accuracy_at_{t}": None for t in range(1, steps + 1)}
    row |= {f"accuracy_cumulative_{t}": None for t in range(1, steps + 1)}
    row |= {"energy_pj": None, "seconds": None, "folder": f"cells/{cell_name(cell)}"}
    run = find_cell(cell, folder)
    if run is None:
        begun = next(all_runs(cell_folder(cell, folder), "student"), None)
        return row if begun is None else {**row, "state": begun.status().get("state")}
    status, epochs = run.status(), read_csv(run.folder / "metrics.csv")
    for name in ("state", "accuracy", "teacher_accuracy"):
        row[name] = status.get(name)
    for measured in read_csv(run.folder / "per_timestep.csv"):
        row[f"accuracy_at_{measured['t']}"] = measured["accuracy_at_t"]
        row[f"accuracy_cumulative_{measured['t']}"] = measured["accuracy_cumulative"]
    held_out = [line["validation_accuracy"] for line in epochs]
    row["validation_accuracy"] = max((float(value) for value in held_out if value), default=None)
    energy = read_csv(run.folder / "energy.csv")
    row["energy_pj"] = next(line["energy_pj"] for line in energy if _is_total(line))
    row["seconds"] = sum(float(line["seconds"]) for line in epochs)
    return row


def _is_total(line: dict[str, str]) -> bool:
    return line["layer"] == TOTAL and line["t"] == "all"
