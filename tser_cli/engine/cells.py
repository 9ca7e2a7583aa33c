"""Running one cell of an ablation as `tser distill` in a process of its own."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w
import torch

from tser_cli.engine.grid import Cell
from tser_cli.engine.runs import Run, newest_finished
from tser_cli.engine.signals import StopRequest
from tser_cli.files import make_folder, write_text
from tser_cli.report.tables import read_csv

POLL_SECONDS = 0.5
TELL_LINES = 3


class Launcher:
    """Starts cells in turn, `jobs` side by side: a GPU each if there are any."""

    def __init__(self, folder: Path, jobs: int, stop: StopRequest) -> None:
        self._folder = folder
        self._stop = stop
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._jobs = jobs

    def run(self, cell: Cell) -> tuple[Cell, str]:
        """Run a cell to its end; the text says what went wrong, "" where nothing did."""
        if self._stop.requested:
            return cell, "not started"
        slot = self._slots.get()
        try:
            return cell, self._run(cell, slot)
        finally:
            self._slots.put(slot)

    def _run(self, cell: Cell, slot: int) -> str:
        home = cell_folder(cell, self._folder)
        make_folder(home)
        settings, log = home / "cell.toml", home / "cell.log"
        write_text(settings, tomli_w.dumps(cell.config.model_dump(mode="json")))
        command = [sys.executable, "-m", "tser_cli", "distill", "--recipe", str(settings)]
        command += ["--runs-dir", str(home), "--resume", "auto"]
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=self._environment(slot)
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

    def _environment(self, slot: int) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TSER_")}
        environment["OMP_NUM_THREADS"] = str(self._threads)
        gpus = torch.cuda.device_count()
        if gpus and self._jobs > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
        return environment


def cell_folder(cell: Cell, folder: Path) -> Path:
    """Where a cell's run lies, by its varied settings and seed."""
    name = f"{cell.label.replace(', ', '_')}_s{cell.seed}"
    return folder / "cells" / re.sub(r"[^\w.=-]", "-", name)


def find_cell(cell: Cell, folder: Path) -> Run | None:
    """The finished run of a cell, None where there is none yet."""
    return newest_finished(cell_folder(cell, folder), "student")


def outcome(run: Run | None, steps: int) -> dict[str, Any]:
    """The columns of ablation.csv that a finished run fills; empty for one that is not there."""
    row: dict[str, Any] = {"state": "missing", "accuracy": None, "teacher_accuracy": None}
    row |= {"validation_accuracy": None, "energy_pj": None, "seconds": None, "folder": None}
    row |= {f"accuracy_at_{t}": None for t in range(1, steps + 1)}
    if run is None:
        return row
    status = run.status()
    for name in ("state", "accuracy", "teacher_accuracy"):
        row[name] = status.get(name)
    for measured in read_csv(run.folder / "per_timestep.csv"):
        row[f"accuracy_at_{measured['t']}"] = measured["accuracy_at_t"]
    epochs = [line["validation_accuracy"] for line in read_csv(run.folder / "metrics.csv")]
    row["validation_accuracy"] = max((float(value) for value in epochs if value), default=None)
    row["energy_pj"] = read_csv(run.folder / "energy.csv")[-1]["energy_pj"]
    row["seconds"] = run.environment().get("wall_seconds")
    row["folder"] = str(run.folder)
    return row
