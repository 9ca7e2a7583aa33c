"""Run cells of an ablation, each as `tser distill` in a process of its own: here, or by Ray.

Ray places the cells on the machines of its cluster, and starts one anew whose worker or machine is
lost; the cell itself is resumed from its last checkpoint. All machines must see the ablation's
folder, the teacher and the data under the same paths.
https://docs.ray.io/en/latest/ray-core/tasks.html
"""

from __future__ import annotations

import importlib
import os
import queue
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tser_cli.base.errors import ConfigError, TserError, first_line
from tser_cli.base.system import cores
from tser_cli.engine.ablation import cell_process
from tser_cli.engine.ablation.folder import LOG, arguments, find_cell, write_settings
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


POLL_SECONDS = 0.5
RETRIES = 1  # of a lost worker or machine; a cell that fails is not run again
# A network file system shows what another machine wrote within its attribute cache's time, 60 s.
SEEN_SECONDS = 90.0


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to: the module, and its machines' resources."""

    ray: Any
    machines: list[dict[str, float]]


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The running cluster at `address`, "auto" or HOST:PORT; disconnected at the end.

    Raises ConfigError where Ray is not installed, or where there is no cluster to use.
    """
    # first: a mistyped address is reported at once, with Ray or without
    check_address(address)
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f'--address needs Ray ({error}): install tser-cli[ray] (pip install "tser-cli[ray]")'
        ) from error
    before = signal.getsignal(signal.SIGTERM)
    try:
        # what cells print goes into their logs, not onto this terminal
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    # ConnectionError, RuntimeError and errors of Ray's own, by what is wrong
    except Exception as error:
        raise _no_cluster(address, error) from error
    finally:
        # ray.init takes SIGTERM over, and would end this process without stopping the cells
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    try:
        yield Cluster(ray, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Raise ConfigError where `address` is neither auto nor a HOST:PORT where something answers."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--address {address}: write auto or HOST:PORT, as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"--address {address}: no Ray cluster to use there: {_said(error)}. Start one (ray "
        "start --head), and run this command on one of its machines"
    )


def _said(error: Exception) -> str:
    """Return what an error says first, without its final stop; its kind where it says nothing."""
    return (first_line(error) or type(error).__name__).rstrip(". ")


def share(machines: list[dict[str, float]], device: str, jobs: int | None) -> dict[str, int]:
    """Return what one cell asks of Ray: a GPU with its share of the cores, or cores alone.

    Without GPUs a cell gets a whole machine (the smallest's cores), or its share of all cores where
    `jobs` run side by side. Raises ConfigError for a cluster without cores.
    """
    with_gpus = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if with_gpus and (device == "auto" or device.startswith("cuda")):
        # Ray may choose any of these machines: a cell must fit the one with the least
        cores = min(machine.get("CPU", 0) // machine["GPU"] for machine in with_gpus)
        return {"num_gpus": 1, "num_cpus": int(cores)}
    sizes = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    if not sizes:
        raise ConfigError("the Ray cluster offers no cores; start its machines with --num-cpus")
    return {"num_cpus": max(1, min(min(sizes), sum(sizes) // jobs)) if jobs else min(sizes)}


class RayLauncher:
    """Runs cells on a cluster. `run` may be called in as many threads as cells may wait at once."""

    def __init__(self, folder: Path, cluster: Cluster, jobs: int | None, stop: StopRequest) -> None:
        self._folder, self._cluster, self._jobs, self._stop = folder, cluster, jobs, stop

    def run(self, cell: Cell) -> str:
        """Run a cell to its end; returns what went wrong, "" where nothing did."""
        errors = self._cluster.ray.exceptions
        if self._stop.requested:
            return NOT_STARTED
        try:
            return self._finish(self._start(cell)) or self._seen(cell)
        except errors.TaskCancelledError:
            return NOT_STARTED
        except errors.RayError as error:
            return f"lost by Ray: {_said(error)}"
        except (TserError, OSError) as error:
            return str(error)

    def _start(self, cell: Cell) -> Any:
        if cell.config.training.device.startswith("cuda:"):
            # Ray shows a cell no GPU but its own
            cell = cell.updated({"training.device": "cuda"})
        home = write_settings(cell, self._folder)
        wanted = share(self._cluster.machines, cell.config.training.device, self._jobs)
        task = self._cluster.ray.remote(**wanted, max_retries=RETRIES)(cell_process.run_in_folder)
        return task.remote(arguments(home), str(home), LOG, str(Path.cwd()))

    def _finish(self, reference: Any) -> str:
        ray, cancelled = self._cluster.ray, False
        # a wait that ends now and then, so that a request to stop is noticed
        while not ray.wait([reference], timeout=POLL_SECONDS)[0]:
            if self._stop.requested and not cancelled:
                ray.cancel(reference)  # its process saves its state; the task ends after that
                cancelled = True
        return str(ray.get(reference))

    def _seen(self, cell: Cell) -> str:
        end = time.monotonic() + SEEN_SECONDS
        while find_cell(cell, self._folder) is None:
            if time.monotonic() > end:
                return f"it finished, but {self._folder} does not show it: is the folder shared?"
            time.sleep(POLL_SECONDS)
        return ""
