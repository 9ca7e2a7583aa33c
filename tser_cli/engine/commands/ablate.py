"""`tser ablate`: many trainings that differ in the varied settings alone.

Every cell is an ordinary `tser distill` in a process of its own, so that one that fails, or is
killed, harms no other. All share one teacher and one data split; cells of one seed share initial
weights and data order, so that their differences are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import filelock

from tser_cli.config import Config
from tser_cli.engine.ablation import tsne
from tser_cli.engine.ablation.cell_folder import Launcher, default_jobs, find_cell
from tser_cli.engine.ablation.folder import (
    Place,
    checked_plan,
    find_folder,
    needs_teacher,
    recorded_teacher,
    teacher_key,
    write_plan,
)
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.ablation.ray_launcher import Cluster, RayLauncher, connected
from tser_cli.engine.ablation.summary import write_tables
from tser_cli.engine.commands.distill import provide_teacher
from tser_cli.engine.runtime.context import Options, prepare
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.errors import Interrupted, RunError, TrainingError
from tser_cli.files import make_folder
from tser_cli.report import ablation, ablation_plots, console

Tell = Callable[[str], None]


def ablate(request: Request, place: Place) -> None:
    """Run what is not finished, write the tables and figures, show the table.

    A failed cell is reported and does not stop the others; then TrainingError at the end. Raises
    Interrupted (running cells have saved their state), ConfigError where the folder belongs to
    another ablation or where there is no cluster, RunError where another process works in it.
    """
    document = checked_plan(request, place)
    with cluster_of(place) as cluster, hold(place):
        failures = train_cells(request, place, document, cluster)
        summary = write_tables(request, place.folder)
        tsne.write(request.cells, place.folder)
        present(request, place, summary, ablation_plots.draw_all(place.folder))
    if failures:
        raise TrainingError(
            f"{len(failures)} of {len(request.cells)} runs failed; the same command tries them "
            "again:\n" + "\n".join(failures)
        )


def cluster_of(place: Place) -> AbstractContextManager[Cluster | None]:
    """The Ray cluster that the cells shall run on, None for this machine. Raises ConfigError."""
    return connected(place.address) if place.address else nullcontext()


def train_cells(
    request: Request, place: Place, document: dict[str, Any], cluster: Cluster | None
) -> list[str]:
    """Train the teachers and cells that are not finished; returns what failed.

    Raises Interrupted.
    """
    terminal = console.messages()

    def tell(text: str) -> None:
        terminal.print(text, markup=False, soft_wrap=True)

    with StopRequest(tell) as stop:
        cells = share_teachers(request.cells, place, document)
        write_plan(place, document)
        waiting = [cell for cell in cells if find_cell(cell, place.folder) is None]
        tell(f"{len(cells)} runs, {len(cells) - len(waiting)} finished before")
        jobs = place.jobs or (len(waiting) if cluster else default_jobs(waiting))
        launcher = (
            RayLauncher(place.folder, cluster, place.jobs, stop)
            if cluster
            else Launcher(place.folder, jobs, stop)
        )
        failures = run_cells(
            waiting, launcher, jobs, tell, lambda: write_tables(request, place.folder)
        )
        if stop.requested:
            raise Interrupted(stop.signal or 15)
    return failures


@contextmanager
def hold(place: Place) -> Iterator[None]:
    """The ablation's folder, for this process alone. Raises RunError if another has it."""
    make_folder(place.folder)
    try:
        lock = filelock.FileLock(place.folder / ".lock").acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(
            f"{place.folder} is in use by another tser ablate. Wait for it, or stop it first"
        ) from None
    with lock:
        yield


def share_teachers(cells: list[Cell], place: Place, document: dict[str, Any]) -> list[Cell]:
    """The cells with `model.teacher` as one file, for all of one architecture and data set.

    It is noted in plan.json when it is chosen, so that a repeated command takes the same one.
    """
    chosen: dict[str, str] = {}
    shared = []
    for cell in cells:
        key = teacher_key(cell.config)
        if not needs_teacher(cell):
            shared.append(cell)
            continue
        if key not in chosen:
            chosen[key] = recorded_teacher(document, key) or choose_teacher(
                cell.config, place, document
            )
        changed = cell.config.updated({"model.teacher": chosen[key]})
        shared.append(Cell(cell.varied, cell.seed, changed))
    return shared


def choose_teacher(config: Config, place: Place, document: dict[str, Any]) -> str:
    """The file of the teacher that these settings name, trained first if there is none."""
    folder = find_folder(config, place) or place.own_runs
    loaded = provide_teacher(prepare(config), Options(folder))
    assert loaded is not None, "asked only for methods with a teacher"
    path = Path(loaded.source)
    if not path.is_file():
        return config.model.teacher  # weights that come with a package
    file = str(path.resolve())
    document["teachers"][teacher_key(config)] = {"file": file, "sha256": loaded.sha256}
    write_plan(place, document)
    return file


def run_cells(
    cells: list[Cell],
    launcher: Launcher | RayLauncher,
    jobs: int,
    tell: Tell,
    after: Callable[[], Any],
) -> list[str]:
    """Run cells, at most `jobs` at a time; `after` each, the tables are brought up to date.

    Returns what failed. An error of `after` is raised once the cells that run have ended; no
    further one begins.
    """
    failures = []
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        running = {pool.submit(launcher.run, cell): cell for cell in cells}
        try:
            for done, future in enumerate(as_completed(running), start=1):
                cell, problem = running[future], future.result()
                if problem:
                    failures.append(f"{cell.title}: {problem}")
                spent = f"{time.monotonic() - began:.0f} s"
                tell(f"{done} of {len(cells)}, {spent}: {cell.title}: {problem or 'finished'}")
                after()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures


def present(
    request: Request, place: Place, summary: list[dict[str, Any]], figures: list[Path]
) -> None:
    """Show the table and where the files are."""
    out = console.output()
    title = f"{place.folder.name}: {request.measure.replace('_', ' ')}"
    out.print(ablation.table(title, summary, request.axes, request.names))
    names = ["ablation.csv", "summary.csv", *(["figures"] if figures else [])]
    for name in names:
        out.print(f"written: {place.folder / name}", markup=False, soft_wrap=True)
