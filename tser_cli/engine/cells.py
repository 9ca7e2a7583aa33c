"""Running one cell of an ablation as `tser distill` in a process of its own."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import tomli_w
import torch

from tser_cli.engine.grid import Cell
from tser_cli.engine.runs import Run, all_runs, newest_finished
from tser_cli.engine.signals import StopRequest
from tser_cli.errors import TserError
from tser_cli.files import make_folder, write_text
from tser_cli.report.tables import read_csv

POLL_SECONDS = 0.2
TELL_LINES = 3
TOTAL = "TOTAL"


class Launcher:
    """Starts cells in turn, `jobs` side by side: a GPU each if there are any."""

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
            return "not started" if self._stop.requested else self._run(cell, slot)
        except (TserError, OSError) as error:
            return str(error)
        finally:
            self._slots.put(slot)

    def _run(self, cell: Cell, slot: int) -> str:
        home = cell_folder(cell, self._folder)
        make_folder(home)
        settings, log = home / "cell.toml", home / "cell.log"
        write_text(settings, tomli_w.dumps(cell.config.model_dump(mode="json")))
        command = [sys.executable, "-m", "tser_cli.engine.bound", str(os.getpid()), "distill"]
        command += ["--recipe", str(settings), "--runs-dir", str(home), "--resume", "auto"]
        environment = cell_environment(cell, slot, self._jobs)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment
            )
            code = self._wait(process)
        if code == 0:
            return ""
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TELL_LINES:]
        return f"exit code {code}: {' / '.join(lines)} (see {log})"

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        told = False
        while True:
            try:
                return process.wait(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if self._stop.requested and not told:
                    process.send_signal(signal.SIGTERM)  # it saves its state and ends
                    told = True


def cell_environment(cell: Cell, slot: int, jobs: int) -> dict[str, str]:
    """The variables of a cell's process: its share of the threads, and its GPU among several.

    No TSER_* variable: the cell's settings are complete.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TSER_")}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
    if jobs > 1 and cell.config.training.device in ("auto", "cuda") and torch.cuda.is_available():
        listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = listed.split(",") if listed else [str(n) for n in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


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
    safe = re.sub(r"[^\w.=+-]", "-", name)[:200]
    return safe if safe == name else f"{safe}-{zlib.crc32(name.encode()):08x}"


def cell_folder(cell: Cell, folder: Path) -> Path:
    """Where a cell's run lies, by its varied settings and seed."""
    return folder / "cells" / cell_name(cell)


def find_cell(cell: Cell, folder: Path) -> Run | None:
    """The finished run of a cell, None where there is none yet."""
    return newest_finished(cell_folder(cell, folder), "student")


def outcome(cell: Cell, folder: Path, steps: int) -> dict[str, Any]:
    """The columns of ablation.csv that a cell's run fills; `steps` is the largest T of all.

    `seconds` are of training, over all sessions; `folder` is relative to the ablation's.
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
