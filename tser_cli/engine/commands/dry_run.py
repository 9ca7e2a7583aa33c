"""Say what a training would do and how long it would take, without writing anything."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from tser_cli.data.loaders import build_train_loader
from tser_cli.engine.runs import find, networks, teachers
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.runs.runtime import seed_everything
from tser_cli.engine.training.run import other_schedule, student_task, teacher_task
from tser_cli.engine.training.settle import settle, settle_batch_size
from tser_cli.engine.training.task import Task
from tser_cli.models.base import parameter_count
from tser_cli.report.words import counted
from tser_cli.settings import registry
from tser_cli.settings.config import Config

WARM_UP_STEPS = 2  # the first ones plan convolutions and ask for memory
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
    teachers.check_architecture(config.model.teacher)
    context = _settled("teacher", config, options)
    return _plan("teacher", config.model.teacher, teacher_task(context), context, options, None)


def plan_student(config: Config, options: Options) -> TrainingPlan:
    """Return the plan of `distill`; a teacher that is not there yet is measured untrained."""
    context = _settled("student", config, options)
    teacher, source = _teacher(context, options)
    task = student_task(context, teacher)
    return _plan("student", config.model.student, task, context, options, source)


def _settled(kind: str, config: Config, options: Options) -> Context:
    """Return what a training works on. Raises where `--resume must` has nothing to resume."""
    context = settle(kind, config, options)
    # "auto" and "never" have an answer for every state of the runs folder
    if options.resume == "must":
        run = find.find_unfinished(options.runs_dir, kind, context.config, must=True)
        assert run is not None, "else it raises"
        warning = other_schedule(run, context.config)
        if warning:
            context.progress.warn(warning)
    return context


def _teacher(context: Context, options: Options) -> tuple[networks.Loaded | None, str]:
    config, spec = context.config, context.dataset.spec
    if not registry.METHODS[config.method.name].needs_teacher:
        return None, f"none, {config.method.name} needs none"
    loaded = teachers.find_fitting(context, options.runs_dir)
    if loaded is not None:
        return loaded, f"{loaded.name} from {loaded.source}"
    first = teachers.teacher_config(config).training.epochs
    # its step costs as much as a trained one's
    untrained = networks.untrained(config.model.teacher, spec, config)
    return untrained, f"a {config.model.teacher} is trained first, {counted(first, 'epoch')}"


def _plan(
    kind: str, name: str, task: Task, context: Context, options: Options, teacher: str | None
) -> TrainingPlan:
    # as the training would: "auto" is a number before the steps of an epoch are counted
    context = settle_batch_size(task, kind, context, options)
    training = context.config.training
    loader = build_train_loader(context.dataset, context.config)
    # deterministic kernels may be slower: they are chosen before the step is measured
    seed_everything(training.seed, training.deterministic)
    return TrainingPlan(
        config=context.config,
        network=name,
        parameters=parameter_count(task.model),
        teacher=teacher,
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
    # in training mode, as what is estimated: norms compute their statistics from the batch
    runtime.place(task.network).train()
    loader = build_train_loader(context.dataset, context.config, device=runtime.device)
    # a step of length 0: the time is that of a real one, and no weight moves
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
    # a tiny data set has fewer batches than that
    measured = spent[WARM_UP_STEPS:] or spent
    return sum(measured) / len(measured)
