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

from tser_cli.csv_words import ALL, TOTAL
from tser_cli.engine.ablation import cell_process
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.runs.run_folder import Run, all_runs, newest_finished
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.errors import TserError
from tser_cli.files import make_folder, write_text
from tser_cli.report.csv_files import ENERGY, INTEGER, PER_TIMESTEP, read_table

SETTINGS = "cell.toml"
LOG = "cell.log"
NOT_STARTED = "not started"


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


def result_row(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the columns of ablation.csv that a cell's run fills, the varied settings aside.

    `folder` is the ablation's, and the column of that name is relative to it.
    """
    row = {"seed": cell.seed, "state": "missing", "folder": f"cells/{cell_name(cell)}"}
    run = find_cell(cell, folder)
    if run is not None:
        return {**row, "state": "finished", **result_of(run)}
    begun = next(all_runs(cell_folder(cell, folder), "student"), None)
    return row if begun is None else {**row, "state": begun.status().get("state")}


def result_of(run: Run) -> dict[str, Any]:
    """Return what came out of a finished run. `seconds` are of training, in all its parts."""
    status = run.status()
    epochs = read_table(run.folder / "metrics.csv", {"epoch": INTEGER})
    steps = read_table(run.folder / "per_timestep.csv", PER_TIMESTEP).set_index("t")
    energy = read_table(run.folder / "energy.csv", ENERGY).set_index(["layer", "t"])
    held_out = epochs["validation_accuracy"].dropna()
    return {
        "accuracy": status.get("accuracy"),
        "teacher_accuracy": status.get("teacher_accuracy"),
        "validation_accuracy": float(held_out.max()) if len(held_out) else None,
        **{f"accuracy_at_{t}": value for t, value in steps["accuracy_at_t"].items()},
        **{f"accuracy_cumulative_{t}": value for t, value in steps["accuracy_cumulative"].items()},
        "energy_pj": energy["energy_pj"].to_dict()[TOTAL, ALL],
        "seconds": sum(epochs["seconds"].tolist()),
    }
