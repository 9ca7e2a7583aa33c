"""What is timed: our training step, the floor below it, and a plain spikingjelly network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from tser_cli.base.progress import Silent
from tser_cli.data.base import DataSpec
from tser_cli.data.loaders import Batch
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.networks import freeze
from tser_cli.engine.runs.runtime import Runtime, make_runtime
from tser_cli.engine.training.loop import train_step
from tser_cli.engine.training.optimizer import make_optimizer
from tser_cli.engine.training.state import Position, TrainingJob
from tser_cli.engine.training.task import Task, distillation
from tser_cli.models.base import Classifier
from tser_cli.settings.config import Config
from tser_cli.settings.recipe import Layer, resolve

SIDE, CLASSES = 32, 100
SPEC = DataSpec(
    "cifar100",
    3,
    SIDE,
    SIDE,
    tuple(str(label) for label in range(CLASSES)),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
PLAIN: dict[str, Any] = {
    "neuron.backend": "spikingjelly",
    "performance.channels_last": False,
    "performance.stem_once": False,
    "performance.fold_teacher": False,
    "performance.fused_optimizer": False,
}


@dataclass(frozen=True)
class Size:
    """Of one comparison."""

    timesteps: int
    batch: int
    teacher: str = "resnet34"
    student: str = "resnet18"
    precision: str = "fp32"

    def config(self, changes: dict[str, Any] | None = None) -> Config:
        """The settings of a distillation of this size."""
        values = {
            "model.teacher": self.teacher,
            "model.student": self.student,
            "model.timesteps": self.timesteps,
            "training.batch_size": self.batch,
            "training.precision": self.precision,
        }
        return resolve([Layer("benchmark", {**values, **(changes or {})})])


def make_batch(images: int, spec: DataSpec = SPEC) -> Batch:
    """Noise with labels."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, *spec.sample_shape, generator=draw)
    return Batch(pixels, torch.arange(images) % spec.num_classes, torch.arange(images))


def make_task(config: Config, runtime: Runtime, spec: DataSpec = SPEC) -> Task:
    """A distillation with random weights, on the device."""
    torch.manual_seed(0)
    teacher = networks.build(config.model.teacher, spec, config, spiking=False)
    runtime.place(teacher)
    student = networks.build(config.model.student, spec, config, spiking=True)
    task = distillation(student, teacher, config, spec.sample_shape)
    task.network = runtime.place(task.network)
    task.network.train()
    return task


def training_step(
    size: Size, changes: dict[str, Any] | None = None, spec: DataSpec = SPEC
) -> Callable[[], object]:
    """One optimizer step of `tser distill`, without the loading of images."""
    config = size.config(changes)
    runtime = make_runtime(config.training, config.performance.channels_last)
    task, batch = make_task(config, runtime, spec), make_batch(size.batch, spec)
    return step_of(task, config, runtime, batch)


def step_of(task: Task, config: Config, runtime: Runtime, batch: Batch) -> Callable[[], object]:
    """One optimizer step of a task on a batch."""
    optimizer = make_optimizer(
        task.trainable(), config.optimizer, config.performance.fused_optimizer
    )
    loader: Any = SimpleNamespace(steps_per_epoch=1)
    job = TrainingJob(task, loader, config, None, runtime, Silent(), None)  # type: ignore[arg-type]
    return lambda: train_step(job, optimizer, batch, Position())


def floor_step(size: Size) -> Callable[[], object]:
    """The arithmetic below a step: the student's ANN on T x N images, the teacher on N, SGD."""
    config = size.config()
    runtime = make_runtime(config.training)
    torch.manual_seed(0)
    teacher = freeze(_ann(size.teacher, config, runtime))
    student = _ann(size.student, config, runtime).train()
    optimizer = make_optimizer([student], config.optimizer)
    batch = make_batch(size.batch)
    images_NCHW = runtime.images(batch.images_NCHW)
    copies_NCHW = images_NCHW.repeat(size.timesteps, 1, 1, 1)
    labels_N = batch.labels_N.to(runtime.device).repeat(size.timesteps)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with runtime.autocast():
            with torch.no_grad():
                taught = teacher(images_NCHW).float().repeat(size.timesteps, 1)
            logits = student(copies_NCHW).float()
        loss = functional.cross_entropy(logits, labels_N) + functional.kl_div(
            logits.log_softmax(-1), taught.log_softmax(-1), reduction="batchmean", log_target=True
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _ann(name: str, config: Config, runtime: Runtime) -> Classifier:
    model = networks.build(name, SPEC, config, spiking=False)
    runtime.place(model)
    return model


STEPS: dict[str, Callable[[Size], Callable[[], object]]] = {
    "floor": floor_step,
    "step": training_step,
    "saving": lambda size: training_step(size, {"performance.save_memory": True}),
    "plain": lambda size: training_step(size, PLAIN),
}
