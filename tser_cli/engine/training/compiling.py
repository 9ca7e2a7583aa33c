"""Compile networks with torch.compile where that was asked for or pays."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from tser_cli.config import Config
from tser_cli.engine.training.task import Task
from tser_cli.errors import ConfigError

# Below so many image passes of a run compiling costs more than it gives: about two epochs of
# CIFAR. A choice, not a measurement.
WORTH_COMPILING = 100_000
OLDEST_GPU = (7, 0)  # Triton's


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
    """Return what torch.compile needs on `device` and does not find, "" where it has all."""
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
