"""What is decided before a training begins so that it goes fast: compiling, kept logits."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from tser_cli.config import Config
from tser_cli.data.loaders import build_eval_loader
from tser_cli.engine.runtime.context import Context
from tser_cli.engine.training.task import Task, teach
from tser_cli.errors import ConfigError

# Below so many image passes of a run compiling costs more than it gives: about two epochs of
# CIFAR. A choice, not a measurement.
WORTH_COMPILING = 100_000
BATCH = 256
OLDEST_GPU = (7, 0)  # Triton's


def keeps_logits(task: Task, config: Config, deterministic: bool, world: int) -> bool:
    """Whether the teacher's logits are computed once: where an image never changes, and it pays.

    Every process computes all of them, so that with more processes than epochs it would not pay.
    """
    return (
        config.performance.keep_teacher_logits
        and task.teacher is not None
        and task.teacher_tap is None
        and deterministic
        and config.training.epochs > world
    )


@torch.no_grad()
def teach_all(task: Task, context: Context, heed: Callable[[int], None]) -> Tensor:
    """The teacher's logits of all training images, [M, K] by index; of others zeros.

    In an order and in batches that never change, so that a resumed run has the same bits. `heed` is
    called after each batch, and may raise.
    """
    assert task.teacher is not None
    runtime, dataset = context.runtime, context.dataset
    config = context.config.updated({"training.eval_batch_size": BATCH})
    taught_MK = torch.zeros(len(dataset.train), dataset.spec.num_classes, device=runtime.device)
    for batch in build_eval_loader(dataset, "train", config):
        with runtime.autocast():
            logits_NK = teach(task.teacher, runtime.images(batch.images_NCHW))
        taught_MK[batch.indices_N.to(runtime.device)] = logits_NK
        heed(len(batch.labels_N))
    return taught_MK


def compile_networks(task: Task, config: Config, device: torch.device, images: int) -> None:
    """torch.compile what `performance.compile` says; `images`: how many a training epoch has.

    "auto" compiles a teacher on a GPU that can, where the run is long enough: on a CPU the step is
    at the cost of its convolutions already, which compiling leaves as they are. Raises ConfigError
    for "on" where that can't be done.
    """
    mode = config.performance.compile
    passes = images * config.training.epochs
    long = device.type == "cuda" and passes >= WORTH_COMPILING
    if mode != "off" and (mode == "on" or long):
        missing = what_compiling_lacks(device)
        if missing and mode == "on":
            raise ConfigError(
                f"performance.compile = on needs {missing}; install it, or leave it at auto"
            )
        long = not missing
    if task.teacher is not None and (mode == "on" or (mode == "auto" and long)):
        task.teacher.compile()
    if mode == "on":
        task.network.compile()


def what_compiling_lacks(device: torch.device) -> str:
    """What torch.compile needs on `device` and does not find, "" where it has all."""
    variable, names = "CXX", ["g++", "clang++"]
    if device.type == "cuda":
        variable, names = "CC", ["gcc", "clang", "cc"]
        if importlib.util.find_spec("triton") is None:
            return "Triton"
        if torch.cuda.get_device_capability(device) < OLDEST_GPU:
            return "a newer GPU (compute capability 7.0)"
    if any(shutil.which(name) for name in (os.environ.get(variable, ""), *names) if name):
        return ""
    return f"a compiler ({variable}, {' or '.join(names)})"
