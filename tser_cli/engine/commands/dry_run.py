"""--dry-run: what a command would do and how long it would take, without writing anything."""

from __future__ import annotations

import time

import tomli_w
import torch

from tser_cli import registry
from tser_cli.config import Config
from tser_cli.data.loaders import build_train_loader
from tser_cli.engine.commands.distill import settle_batch
from tser_cli.engine.runs import model_files
from tser_cli.engine.runtime.context import Context, Options, prepare
from tser_cli.engine.runtime.processes import seed_everything
from tser_cli.engine.teachers import find
from tser_cli.engine.teachers.fits import find_fitting
from tser_cli.engine.training.task import Task, classification, distillation
from tser_cli.models import Classifier
from tser_cli.models.base import parameter_count
from tser_cli.report import console

WARM_UP_STEPS = 2
MEASURED_STEPS = 3


def plan_teacher(config: Config, options: Options) -> None:
    """Print the plan of `train-teacher`."""
    find.check_architecture(config.model.teacher)
    context = prepare(config)
    name = config.model.teacher
    model = model_files.build(name, context.dataset.spec, config, spiking=False)
    task = classification(model, config)
    show(settle_batch(task, "teacher", context, options), name, task, [])


def plan_student(config: Config, options: Options) -> None:
    """Print the plan of `distill`; a teacher that is not there yet is measured untrained."""
    context = prepare(config)
    model = model_files.build(config.model.student, context.dataset.spec, config, spiking=True)
    teacher, note = _teacher(context, options)
    task = distillation(model, teacher, config, context.dataset.spec.image_shape)
    show(settle_batch(task, "student", context, options), config.model.student, task, [note])


def _teacher(context: Context, options: Options) -> tuple[Classifier | None, str]:
    config, spec = context.config, context.dataset.spec
    if not registry.METHODS[config.method.name].needs_teacher:
        return None, f"teacher: none, {config.method.name} needs none"
    loaded = find_fitting(context, options.runs_dir)
    if loaded is None:
        first = find.teacher_config(config).training.epochs
        untrained = model_files.build(config.model.teacher, spec, config, spiking=False)
        context.runtime.place(untrained)
        return untrained, f"teacher: a {config.model.teacher} is trained first, {first} epochs"
    context.runtime.place(loaded.model)
    return loaded.model, f"teacher: {loaded.name} from {loaded.source}"


def show(context: Context, name: str, task: Task, notes: list[str]) -> None:
    """Print the resolved recipe, the network's size, the steps and the estimated time."""
    training = context.config.training
    loader = build_train_loader(context.dataset, context.config)
    steps = loader.steps_per_epoch * training.epochs
    seed_everything(training.seed, training.deterministic)
    seconds = step_seconds(task, context)
    out = console.output()
    out.print(tomli_w.dumps(context.config.model_dump(mode="json")), markup=False)
    lines = [
        f"network: {name}, {parameter_count(task.model):,} parameters",
        *notes,
        f"images: {loader.images:,} to train on, {len(context.dataset.test):,} to test on",
        f"steps: {loader.steps_per_epoch:,} an epoch, {steps:,} in all",
        f"time: about {duration(seconds * steps)} of training on {context.runtime.device} "
        f"({1000 * seconds:.0f} ms a step, measured)",
    ]
    out.print("\n".join(lines), soft_wrap=True)


def duration(seconds: float) -> str:
    """37.2 -> "37 s", 4000 -> "67 min", 90000 -> "25.0 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def training_seconds(config: Config, options: Options) -> float:
    """What a student's training will take, from a few real steps."""
    context = prepare(config)
    model = model_files.build(config.model.student, context.dataset.spec, config, spiking=True)
    teacher, _ = _teacher(context, options)
    task = distillation(model, teacher, config, context.dataset.spec.image_shape)
    context = settle_batch(task, "student", context, options)
    loader = build_train_loader(context.dataset, context.config)
    steps = loader.steps_per_epoch * config.training.epochs
    return step_seconds(task, context) * steps


def step_seconds(task: Task, context: Context) -> float:
    """Seconds of one training step, measured on a few real ones that change no file."""
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
