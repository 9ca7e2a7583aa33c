"""Run many trainings that differ in the varied settings alone, or say what that would be.

Every cell is an ordinary `tser distill` in a process of its own, so that one that fails, or is
killed, harms no other. All share one teacher and one data split. Cells of one seed share initial
weights and data order, so that their differences are paired.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tser_cli.base.errors import Interrupted
from tser_cli.base.progress import Progress
from tser_cli.engine.ablation import folder, launchers, tsne
from tser_cli.engine.ablation.folder import AblationFolder, find_cell, needs_teacher, teacher_key
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.ablation.tables import (
    ExitStatistics,
    write_exit_tables,
    write_step_table,
    write_tables,
)
from tser_cli.engine.commands.train import provide_teacher
from tser_cli.engine.runs.opened import PRECISION, Options, prepare
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.runs.teachers import teacher_config
from tser_cli.engine.training.settle import choose_precision, settle
from tser_cli.report import ablation_figures, comparison, csv_files
from tser_cli.report.words import counted
from tser_cli.settings.config import AUTO, Config


@dataclass(frozen=True)
class AblationResult:
    """What an ablation found: its cells' statistics, the files, and what failed.

    `exits`: energies at equal accuracy, none where no images were held out. `events`: see
    `RunResult`. `of_steps`: whether there is a table of the steps.
    """

    folder: Path
    request: Request
    summary: list[comparison.CellStatistics]
    figures: tuple[Path, ...]
    failures: tuple[str, ...]
    exits: tuple[ExitStatistics, ...] = ()
    events: str | None = None
    of_steps: bool = False


def ablate(request: Request, place: AblationFolder, progress: Progress) -> AblationResult:
    """Train what is not finished, write the tables and figures, and return what they say.

    A failed cell does not stop the others: it is among the result's `failures`. Raises Interrupted
    (running cells have saved their state), ConfigError where the folder belongs to another ablation
    or where there is no cluster, RunError where another process works in the folder.
    """
    place = place.with_jobs_for(len(request.cells))
    # before the plan is checked: a plan holds settings as they are trained, never "auto"
    request = with_one_precision(request, place, progress)
    plan = folder.checked_plan(request, place)
    there = launchers.connected(place.address) if place.address else nullcontext()
    with there as cluster, folder.hold(place):
        with StopRequest(progress.warn) as stop:
            cells = share_teachers(request.cells, place, plan, progress)
            folder.write_plan(place, plan)
            # the plan is on disk before any cell begins: a killed command finds its teachers again
            waiting = [cell for cell in cells if find_cell(cell, place.folder) is None]
            progress.say(f"{len(cells)} runs, {len(cells) - len(waiting)} finished before")
            jobs = place.jobs or (len(waiting) if cluster else launchers.default_jobs(waiting))
            launcher = (
                launchers.RayLauncher(place.folder, cluster, place.jobs, stop)
                if cluster
                else launchers.Launcher(place.folder, jobs, stop)
            )
            # after every cell: whoever looks sees what there is, and a killed command loses no row
            tables = partial(write_tables, request, place.folder)
            failures = run_cells(waiting, launcher, jobs, progress, tables)
            if stop.requested:
                # the exit code is 128 and the number of the signal; 15 is SIGTERM
                raise Interrupted(stop.signal or 15)
        summary = write_tables(request, place.folder)
        of_steps = write_step_table(request, place.folder)
        exits = write_exit_tables(request, place, progress)
        tsne.write(request.cells, place.folder, progress)
        # last, from the files alone: a figure drawn later, by hand, shows the same
        names = dict(zip(request.axes, request.names, strict=True))
        figures = ablation_figures.draw_all(place.folder, names)
    found = (row["events"] for row in csv_files.read_csv(place.folder / "ablation.csv"))
    events = next(filter(None, found), None)
    return AblationResult(
        place.folder,
        request,
        summary,
        tuple(figures),
        tuple(failures),
        tuple(exits),
        events,
        of_steps,
    )


def with_one_precision(request: Request, place: AblationFolder, progress: Progress) -> Request:
    """Return the request with one precision for all cells whose settings leave it to the machine.

    It is that of the cells which the folder's plan knows, or is measured on the first cell: else
    some cells might get another one than the others.
    """
    left_open = [cell for cell in request.cells if cell.config.training.precision == AUTO]
    if not left_open:
        return request
    known = {cell.get(PRECISION) for cell in folder.read_plan(place).cells.values()} - {None}
    # a repeated command may run on another machine: what the first cells had counts
    if len(known) == 1:
        (precision,) = known
    else:
        precision = choose_precision("student", prepare(left_open[0].config, progress))
    settled = [
        cell.updated({PRECISION: precision}) if cell.config.training.precision == AUTO else cell
        for cell in request.cells
    ]
    return replace(request, cells=settled)


def share_teachers(
    cells: list[Cell], place: AblationFolder, plan: folder.RecordedPlan, progress: Progress
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
        # the plan's comes first: a newer teacher would make the later cells another experiment
        if key not in chosen:
            chosen[key] = folder.shared_teacher(plan, key) or choose_teacher(
                cell.config, place, plan, progress
            )
        shared.append(cell.updated({"model.teacher": chosen[key]}))
    return shared


def choose_teacher(
    config: Config, place: AblationFolder, plan: folder.RecordedPlan, progress: Progress
) -> str:
    """Return the file of the teacher that these settings name, trained first if there is none.

    It is trained in the runs folder, so that commands that run at once train it once.
    """
    options = Options(place.runs_dir, progress=progress)
    loaded = provide_teacher(settle("student", config, options), options)
    assert loaded is not None, "asked only for methods with a teacher"
    path = Path(loaded.source)
    if not path.is_file():
        return config.model.teacher  # weights that come with a package
    file = str(path.resolve())
    teacher = folder.PlannedTeacher(file=file, sha256=loaded.sha256)
    plan.teachers[teacher_key(config)] = teacher
    folder.write_plan(place, plan)
    return file


def run_cells(
    cells: list[Cell],
    launcher: launchers.Launcher | launchers.RayLauncher,
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
    # threads, not processes: each only waits for the process of its cell
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
        except BaseException:  # Ctrl-C too: else the pool would start every waiting cell
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures


@dataclass(frozen=True)
class AblationPlan:
    """What an ablation would do: each cell's title and whether it is finished, and the time.

    `teachers`: what is trained first, in words. `seconds`: an estimate for all that is not
    finished, `jobs` cells at a time, on the Ray cluster at `address` or on this machine.
    """

    cells: tuple[tuple[str, bool], ...]
    teachers: tuple[str, ...]
    seconds: float
    jobs: int
    jobs_given: bool
    address: str | None


def plan_ablation(request: Request, place: AblationFolder, options: Options) -> AblationPlan:
    """Return the plan of `ablate`. Raises ConfigError as the ablation itself would."""
    from tser_cli.engine.commands import dry_run

    place = place.with_jobs_for(len(request.cells))
    request = with_one_precision(request, place, options.progress)
    plan = folder.checked_plan(request, place)
    finished = [find_cell(cell, place.folder) is not None for cell in request.cells]
    waiting = [cell for cell, done in zip(request.cells, finished, strict=True) if not done]
    # how many cells a cluster has room for is known only once it is asked: one is the worst case
    jobs = place.jobs or (1 if place.address else launchers.default_jobs(waiting))
    options = Options(place.runs_dir, progress=options.progress)
    firsts = {teacher_key(cell.config): cell.config for cell in waiting if needs_teacher(cell)}
    teachers = [
        dry_run.plan_teacher(teacher_config(config), options)
        for key, config in firsts.items()
        if folder.shared_teacher(plan, key) is None and not folder.has_teacher(config, place)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(
        launchers.threads_of(1 if place.address else jobs)
    )  # as each cell will have
    try:
        known: dict[str, float] = {}
        seconds = 0.0
        for cell in waiting:
            # what a step costs depends on the method, not on its weights: equal ones are measured
            # once, and a seed costs as much as another
            parts = cell.config.model_dump(
                mode="json", exclude={"method": True, "training": {"seed"}}
            )
            kind = json.dumps([parts, cell.config.method.name])
            if kind not in known:
                known[kind] = dry_run.plan_student(cell.config, options).seconds
            seconds += known[kind]
    finally:
        torch.set_num_threads(before)
    rounds = math.ceil(len(waiting) / jobs)  # of cells side by side
    return AblationPlan(
        cells=tuple(zip((cell.title for cell in request.cells), finished, strict=True)),
        teachers=tuple(
            f"a {p.network} is trained first, {counted(p.config.training.epochs, 'epoch')}"
            for p in teachers
        ),
        seconds=sum(one.seconds for one in teachers) + rounds * (seconds / max(1, len(waiting))),
        jobs=jobs,
        jobs_given=place.jobs is not None,
        address=place.address,
    )
