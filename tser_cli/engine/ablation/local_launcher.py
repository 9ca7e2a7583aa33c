"""Run cells of an ablation on this machine, each as `tser distill` in a process of its own."""

from __future__ import annotations

import os
import queue
import re
from pathlib import Path

import torch

from tser_cli.base.errors import TserError
from tser_cli.base.system import cores
from tser_cli.engine.ablation import cell_process
from tser_cli.engine.ablation.folder import LOG, arguments, write_settings
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.runs.stop import StopRequest

NOT_STARTED = "not started"


class Launcher:
    """Run cells on this machine, `jobs` side by side: a GPU each if there are any."""

    def __init__(self, folder: Path, jobs: int, stop: StopRequest) -> None:
        self._folder = folder
        self._stop = stop
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)
        self._jobs = jobs

    def run(self, cell: Cell) -> str:
        """Run a cell to its end; return what went wrong, "" where nothing did."""
        # a slot is a GPU: two cells in one would share its memory
        slot = self._slots.get()
        try:
            # asked after the wait for a slot: the stop may have come meanwhile
            if self._stop.requested:
                return NOT_STARTED
            home = write_settings(cell, self._folder)
            environment = cell_environment(cell, slot, self._jobs)
            return cell_process.run(
                arguments(home), home / LOG, environment, lambda: self._stop.requested
            )
        # this cell alone has failed: the others go on
        except (TserError, OSError) as error:
            return str(error)
        finally:
            self._slots.put(slot)


def cell_environment(cell: Cell, slot: int, jobs: int) -> dict[str, str]:
    """Return the variables of a cell's process: its share of threads, its GPU of several."""
    environment = dict(os.environ)
    # cells side by side that each use all cores are slower than one after the other
    environment.setdefault("OMP_NUM_THREADS", str(threads_of(jobs)))
    if jobs > 1 and cell.config.training.device in ("auto", "cuda") and torch.cuda.is_available():
        # what is visible here may be names, or other numbers than torch counts by
        listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = listed.split(",") if listed else [str(n) for n in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def threads_of(jobs: int) -> int:
    """Return the threads of one of `jobs` cells side by side: OMP_NUM_THREADS, else its share."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    # OpenMP takes lists too, for nested teams: then, and of nonsense, the share is used
    sensible = re.fullmatch("[0-9]{1,3}", asked) and int(asked)
    return int(asked) if sensible else max(1, cores() // jobs)


def default_jobs(cells: list[Cell]) -> int:
    """Return as many cells side by side as GPUs, if the cells are free to use any; else one."""
    free = all(cell.config.training.device in ("auto", "cuda") for cell in cells)
    # on CPUs cells side by side would only share the cores
    return max(1, torch.cuda.device_count()) if free else 1
