"""Say what a command would do and how long it would take, without writing anything."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from tser_cli.data.loaders import build_train_loader
from tser_cli.engine.ablation.folder import (
    AblationFolder,
    checked_plan,
    find_cell,
    find_folder,
    needs_teacher,
    shared_teacher,
    teacher_key,
)
from tser_cli.engine.ablation.grid import SEED, Cell, Request
from tser_cli.engine.ablation.local_launcher import default_jobs, threads_of
from tser_cli.engine.commands.ablate import with_one_precision
from tser_cli.engine.runs import find, networks
from tser_cli.engine.runs.networks import Loaded
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.runs.runtime import seed_everything
from tser_cli.engine.runs.teachers import check_architecture, find_fitting, teacher_config
from tser_cli.engine.training.checkpointing import other_schedule
from tser_cli.engine.training.run import student_task, teacher_task
from tser_cli.engine.training.settle import settle, settle_batch_size
from tser_cli.engine.training.task import Task
from tser_cli.models.base import parameter_count
from tser_cli.settings import registry
from tser_cli.settings.config import Config

WARM_UP_STEPS = 2
MEASURED_STEPS = 3


@dataclass(frozen=True)
class TrainingPlan:
    """What a training would do. `teacher` says in words where the teacher comes from.

    `seconds`: an estimate for the training alone, from a few real steps on `device`.
    """

    config: Config
    network: str
    parameters: int
    teacher: str | None
    train_images: int
    test_images: int
    steps_per_epoch: int
    steps: int
    step_seconds: float
    device: str

    @property
    def seconds(self) -> float:
        """Return the estimated time of the training."""
        return self.steps * self.step_seconds


def plan_teacher(config: Config, options: Options) -> TrainingPlan:
    """Return the plan of `train_teacher`. Raises what that would raise before it trains."""
    check_architecture(config.model.teacher)
    context = settle("teacher", config, options)
    check_resumable("teacher", context, options)
    return _plan("teacher", config.model.teacher, teacher_task(context), context, options)


def plan_student(config: Config, options: Options) -> TrainingPlan:
    """Return the plan of `distill`; a teacher that is not there yet is measured untrained."""
    context = settle("student", config, options)
    check_resumable("student", context, options)
    teacher, source = _teacher(context, options)
    task = student_task(context, teacher)
    plan = _plan("student", config.model.student, task, context, options)
    return replace(plan, teacher=source)


def check_resumable(kind: str, context: Context, options: Options) -> None:
    """Raise RunError or ConfigError where `--resume must` has nothing to go on with.

    Warns where what it goes on with becomes another run.
    """
    if options.resume != "must":
        return
    run = find.find_unfinished(options.runs_dir, kind, context.config, must=True)
    assert run is not None, "else it raises"
    warning = other_schedule(run, context.config)
    if warning:
        context.progress.warn(warning)


def _teacher(context: Context, options: Options) -> tuple[Loaded | None, str]:
    config, spec = context.config, context.dataset.spec
    if not registry.METHODS[config.method.name].needs_teacher:
        return None, f"none, {config.method.name} needs none"
    loaded = find_fitting(context, options.runs_dir)
    if loaded is not None:
        return loaded, f"{loaded.name} from {loaded.source}"
    first = teacher_config(config).training.epochs
    untrained = networks.untrained(config.model.teacher, spec, config)
    return untrained, f"a {config.model.teacher} is trained first, {first} epochs"


def _plan(kind: str, name: str, task: Task, context: Context, options: Options) -> TrainingPlan:
    context = settle_batch_size(task, kind, context, options)
    training = context.config.training
    loader = build_train_loader(context.dataset, context.config)
    seed_everything(training.seed, training.deterministic)
    return TrainingPlan(
        config=context.config,
        network=name,
        parameters=parameter_count(task.model),
        teacher=None,
        train_images=loader.images,
        test_images=len(context.dataset.test),
        steps_per_epoch=loader.steps_per_epoch,
        steps=loader.steps_per_epoch * training.epochs,
        step_seconds=step_seconds(task, context),
        device=str(context.runtime.device),
    )


def step_seconds(task: Task, context: Context) -> float:
    """Measure the seconds of one training step, on a few real ones that change no file."""
    runtime = context.runtime
    runtime.place(task.network).train()
    loader = build_train_loader(context.dataset, context.config, device=runtime.device)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
    spent = []
    batches = loader.epoch(0)
    for _, batch in zip(range(WARM_UP_STEPS + MEASURED_STEPS), batches, strict=False):
        began = time.monotonic()
        with runtime.autocast():
            images, labels = runtime.images(batch.images_NCHW), batch.labels_N.to(runtime.device)
            result = task.step(images, labels, batch.indices_N)
        result.terms["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        float(result.correct)  # waits for the device
        spent.append(time.monotonic() - began)
    measured = spent[WARM_UP_STEPS:] or spent
    return sum(measured) / len(measured)


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
    place = place.with_jobs_for(len(request.cells))
    request = with_one_precision(request, place, options.progress)
    document = checked_plan(request, place)
    finished = [find_cell(cell, place.folder) is not None for cell in request.cells]
    waiting = [cell for cell, done in zip(request.cells, finished, strict=True) if not done]
    jobs = place.jobs or (1 if place.address else default_jobs(waiting))
    teachers = _missing_teachers(waiting, document, place, options)
    plans = _cell_plans(waiting, place, jobs, options)
    return AblationPlan(
        cells=tuple(zip((cell.title for cell in request.cells), finished, strict=True)),
        teachers=tuple(
            f"a {p.network} is trained first, {p.config.training.epochs} epochs" for p in teachers
        ),
        seconds=sum(p.seconds for p in teachers) + makespan([p.seconds for p in plans], jobs),
        jobs=jobs,
        jobs_given=place.jobs is not None,
        address=place.address,
    )


def makespan(durations: Sequence[float], jobs: int) -> float:
    """Return when the last of these is done, begun in this order by `jobs` free workers."""
    free_at = [0.0] * jobs
    for duration in durations:
        heapq.heappush(free_at, heapq.heappop(free_at) + duration)
    return max(free_at)


def _cell_plans(
    waiting: list[Cell], place: AblationFolder, jobs: int, options: Options
) -> list[TrainingPlan]:
    """Return the plan of each cell, measured with the threads that it will have."""
    known: dict[str, TrainingPlan] = {}
    plans = []
    for cell in waiting:
        # What a step costs depends on the method, not on its weights: equal ones are measured once.
        parts = cell.config.updated({SEED: 0}).model_dump(mode="json", exclude={"method"})
        kind = json.dumps([parts, cell.config.method.name])
        if kind not in known:
            with _threads(1 if place.address else jobs):
                known[kind] = plan_student(cell.config, replace(options, runs_dir=place.runs_dir))
        plans.append(known[kind])
    return plans


@contextmanager
def _threads(jobs: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of(jobs))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _missing_teachers(
    waiting: list[Cell], document: dict[str, object], place: AblationFolder, options: Options
) -> list[TrainingPlan]:
    firsts = {teacher_key(cell.config): cell.config for cell in waiting if needs_teacher(cell)}
    return [
        plan_teacher(teacher_config(config), replace(options, runs_dir=place.runs_dir))
        for key, config in firsts.items()
        if shared_teacher(document, key) is None and find_folder(config, place) is None
    ]
