"""One precision for all cells of an ablation that leave it to the machine.

Run many trainings that differ in the varied settings alone.

Every cell is an ordinary `tser distill` in a process of its own, so that one that fails, or is
killed, harms no other. All share one teacher and one data split. Cells of one seed share initial
weights and data order, so that their differences are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tser_cli.base.errors import Interrupted
from tser_cli.base.progress import Progress
from tser_cli.engine.ablation import tsne
from tser_cli.engine.ablation.exits import write_exit_tables
from tser_cli.engine.ablation.folder import (
    AblationFolder,
    checked_plan,
    find_cell,
    find_folder,
    hold,
    needs_teacher,
    read_plan,
    shared_teacher,
    teacher_key,
    write_plan,
)
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.ablation.local_launcher import Launcher, default_jobs
from tser_cli.engine.ablation.ray_launcher import Cluster, RayLauncher, connected
from tser_cli.engine.ablation.summary import write_tables
from tser_cli.engine.commands.train import provide_teacher
from tser_cli.engine.runs.opened import Options, prepare
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.training.settle import AUTO, choose_precision, settle
from tser_cli.report import ablation_figures
from tser_cli.settings.config import Config

PRECISION = "training.precision"


def with_one_precision(request: Request, place: AblationFolder, progress: Progress) -> Request:
    """Return the request with one precision for all cells whose settings leave it to the machine.

    It is that of the cells which the folder's plan knows, or is measured on the first cell: else
    some cells might get another one than the others.
    """
    left_open = [cell for cell in request.cells if cell.config.training.precision == AUTO]
    if not left_open:
        return request
    known = {cell.get(PRECISION) for cell in read_plan(place)["cells"].values()} - {None}
    if len(known) == 1:
        (precision,) = known
    else:
        precision = choose_precision("student", prepare(left_open[0].config, progress))
    settled = [
        replace(cell, config=cell.config.updated({PRECISION: precision}))
        if cell in left_open
        else cell
        for cell in request.cells
    ]
    return replace(request, cells=settled)


@dataclass(frozen=True)
class AblationResult:
    """What an ablation found: the rows of its summaries, the files, and what failed.

    `exits`: rows of early_exit_summary.csv, none where no images were held out.
    """

    folder: Path
    request: Request
    summary: list[dict[str, Any]]
    figures: tuple[Path, ...]
    failures: tuple[str, ...]
    exits: tuple[dict[str, Any], ...] = ()


def ablate(request: Request, place: AblationFolder, progress: Progress) -> AblationResult:
    """Train what is not finished, write the tables and figures, and return what they say.

    A failed cell does not stop the others: it is among the result's `failures`. Raises Interrupted
    (running cells have saved their state), ConfigError where the folder belongs to another ablation
    or where there is no cluster, RunError where another process works in the folder.
    """
    place = place.with_jobs_for(len(request.cells))
    request = with_one_precision(request, place, progress)
    document = checked_plan(request, place)
    with _cluster_of(place) as cluster, hold(place):
        failures = train_cells(request, place, document, cluster, progress)
        summary = write_tables(request, place.folder)
        exits = write_exit_tables(request, place, progress)
        tsne.write(request.cells, place.folder, progress)
        names = dict(zip(request.axes, request.names, strict=True))
        figures = ablation_figures.draw_all(place.folder, names)
    return AblationResult(
        place.folder, request, summary, tuple(figures), tuple(failures), tuple(exits)
    )


def _cluster_of(place: AblationFolder) -> AbstractContextManager[Cluster | None]:
    """Return the Ray cluster that the cells run on, None for this machine. Raises ConfigError."""
    return connected(place.address) if place.address else nullcontext()


def train_cells(
    request: Request,
    place: AblationFolder,
    document: dict[str, Any],
    cluster: Cluster | None,
    progress: Progress,
) -> list[str]:
    """Train the teachers and cells that are not finished; return what failed.

    Raises Interrupted.
    """
    with StopRequest(progress.warn) as stop:
        cells = share_teachers(request.cells, place, document, progress)
        write_plan(place, document)
        waiting = [cell for cell in cells if find_cell(cell, place.folder) is None]
        progress.say(f"{len(cells)} runs, {len(cells) - len(waiting)} finished before")
        jobs = place.jobs or (len(waiting) if cluster else default_jobs(waiting))
        launcher = (
            RayLauncher(place.folder, cluster, place.jobs, stop)
            if cluster
            else Launcher(place.folder, jobs, stop)
        )
        failures = run_cells(
            waiting, launcher, jobs, progress, lambda: write_tables(request, place.folder)
        )
        if stop.requested:
            raise Interrupted(stop.signal or 15)
    return failures


def share_teachers(
    cells: list[Cell], place: AblationFolder, document: dict[str, Any], progress: Progress
) -> list[Cell]:
    """Return the cells with `model.teacher` as one file for each architecture and data set.

    The file is noted in plan.json when it is chosen, so that a repeated command takes it again.
    """
    chosen: dict[str, str] = {}
    shared = []
    for cell in cells:
        key = teacher_key(cell.config)
        if not needs_teacher(cell):
            shared.append(cell)
            continue
        if key not in chosen:
            chosen[key] = shared_teacher(document, key) or choose_teacher(
                cell.config, place, document, progress
            )
        shared.append(replace(cell, config=cell.config.updated({"model.teacher": chosen[key]})))
    return shared


def choose_teacher(
    config: Config, place: AblationFolder, document: dict[str, Any], progress: Progress
) -> str:
    """Return the file of the teacher that these settings name, trained first if there is none.

    It is trained in the runs folder, so that commands that run at once train it once.
    """
    folder = find_folder(config, place) or place.runs_dir
    options = Options(folder, progress=progress)
    loaded = provide_teacher(settle("student", config, options), options)
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
    progress: Progress,
    after: Callable[[], Any],
) -> list[str]:
    """Run cells, at most `jobs` at a time, and call `after` when one has ended.

    Return what failed. An error of `after` is raised once the running cells have ended; no further
    cell begins.
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
                progress.say(
                    f"{done} of {len(cells)}, {spent}: {cell.title}: {problem or 'finished'}"
                )
                after()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures
