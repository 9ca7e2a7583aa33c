"""`--precision auto`: bf16 where this machine's CPU is faster with it, else fp32.

What is chosen is the run's from then on: a run that goes on keeps it, on any machine.

`--batch-size auto`: the largest batch that fits into memory, from what two small ones keep.

Compile networks with torch.compile where that was asked for or pays.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.base.errors import ConfigError
from tser_cli.base.system import cpu_has_bf16
from tser_cli.engine.runs import find, networks
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.engine.runs.teachers import teacher_config
from tser_cli.engine.training.task import Task
from tser_cli.models.base import Classifier
from tser_cli.models.savings import keeping
from tser_cli.settings import registry
from tser_cli.settings.config import FLOAT_BITS, Config

AUTO, FP32, BF16 = "auto", "fp32", "bf16"
# Below so many image passes of a run there is too little to gain: about two epochs of CIFAR.
WORTH_TRYING = 100_000
# Of fp32's time a step: what is gained must be worth numbers of fewer digits.
WORTH_TAKING = 0.9
# A try takes one to two seconds: its steps have as many images as fit in.
TRY_SECONDS, ROUNDS, SMALLEST, GROWTH = 1.6, 3, 2, 4


def settle_precision(kind: str, context: Context, options: Options) -> Context:
    """Return `context` with a precision: its own, an unfinished run's, or the faster one."""
    if context.config.training.precision != AUTO:
        return context

    def choose() -> str:
        return _begun(kind, context, options) or choose_precision(kind, context)

    return with_precision(context, context.runtime.on_main(choose))


def with_precision(context: Context, precision: str) -> Context:
    """Return the same with another precision."""
    config = context.config.updated({"training.precision": precision})
    runtime = make_runtime(config.training, config.performance.channels_last)
    return replace(context, config=config, runtime=runtime)


def _begun(kind: str, context: Context, options: Options) -> str | None:
    """Return the precision of the unfinished run that would be gone on with, or its teacher's."""
    config = context.config
    if options.resume == "never":
        return None
    like = find.begun_like(options.runs_dir, kind, config, options.resume == "must")
    if like is None and kind == "student" and registry.METHODS[config.method.name].needs_teacher:
        like = find.begun_like(options.runs_dir, "teacher", teacher_config(config))
    return like.training.precision if like else None


def choose_precision(kind: str, context: Context) -> str:
    """Return the precision for a new run, and say why where it was measured."""
    config = context.config
    passes = len(context.dataset.train) * config.training.epochs
    tried = (
        context.runtime.device.type == "cpu"
        and cpu_has_bf16()
        and passes >= WORTH_TRYING
        and config.model.weight_bits == FLOAT_BITS
    )
    if not tried:
        return FP32
    share = bf16_over_fp32(kind, context)
    chosen = BF16 if share <= WORTH_TAKING else FP32
    context.progress.say(
        f"precision: {chosen}; a step in bf16 takes {share:.2f} of its time in fp32 here"
    )
    return chosen


def bf16_over_fp32(kind: str, context: Context) -> float:
    """Return the time of a step of the run's network in bf16, as a share of its time in fp32.

    A part of a batch will do: with more images bf16 gains more. What counts is the CPU's time, and
    the least of a few rounds, which other work on the machine disturbs least.
    """
    config, spec = context.config, context.dataset.spec
    spiking = kind == "student"
    name = config.model.student if spiking else config.model.teacher
    model = networks.build(name, spec, config, spiking=spiking)
    context.runtime.place(model).train()

    def step(images: int, precision: str) -> float:
        began = time.process_time()
        _step(model, context, images, precision)
        return time.process_time() - began

    images = _images_for(lambda number: step(number, FP32), config.training.batch_size)
    step(images, FP32), step(images, BF16)
    spent = [(step(images, FP32), step(images, BF16)) for _ in range(ROUNDS)]
    least_fp32, least_bf16 = (min(column) for column in zip(*spent, strict=True))
    return float(least_bf16 / least_fp32)


def _images_for(seconds: Callable[[int], float], most: int) -> int:
    """Return how many images of a batch of `most` to try with: as many as TRY_SECONDS allow."""
    images, each = SMALLEST, TRY_SECONDS / (2 * (ROUNDS + 1))
    seconds(images)  # the first step of all takes longer than others
    while GROWTH * images <= most and GROWTH * seconds(images) <= each:
        images *= GROWTH
    return images


def _step(model: Classifier, context: Context, images: int, precision: str) -> None:
    shape, runtime = context.dataset.spec.image_shape, context.runtime
    images_NCHW = runtime.images(torch.zeros(images, *shape))
    labels = torch.zeros(images, dtype=torch.int64, device=runtime.device)
    with torch.autocast(runtime.device.type, torch.bfloat16, enabled=precision == BF16):
        logits = model(images_NCHW, context.config.model.timesteps).float()
    logits_NK = logits.mean(0) if model.spiking else logits
    F.cross_entropy(logits_NK, labels).backward()  # type: ignore[no-untyped-call]


# Of the free memory; and what backward needs beside the kept tensors: the gradients of the layers
# that it is at, and workspaces.
SHARE, TRANSIENT = 0.8, 1.5
SMALL, LARGE = 4, 8
# gradient and momentum, beside weights that are there already; AdamW keeps one more
STATE = {"sgd": 2, "adamw": 3}


def largest_batch(task: Task, context: Context) -> int:
    """Return the largest power of two of images a process and part of a batch that fits, over all
    of them.

    At most the training images. Raises ConfigError where not even one image a process fits.
    """
    runtime, training = context.runtime, context.config.training
    network = runtime.place(task.network)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    free = free_bytes(runtime.device) / _processes_here(runtime.world, runtime.device)
    free -= STATE[context.config.optimizer.name] * weights
    one = TRANSIENT * bytes_an_image(task, context)
    share = runtime.world * training.accumulate
    fitting = -runtime.largest(-images_that_fit(free, one))
    # every process, and every part of a batch, gets as many images as the others
    size = share * power_of_two(min(fitting, len(context.dataset.train) // share))
    if not size:
        raise ConfigError(
            f"not even one image fits into the memory of {runtime.device} ({free / 1e9:.1f} GB "
            "free); try performance.save_memory, or a smaller network"
        )
    return size


def bytes_an_image(task: Task, context: Context) -> float:
    """Return what each image of a batch adds to the memory that a training step holds at once."""

    def slope() -> float:
        small, large = (kept_bytes(task, context, images) for images in (SMALL, LARGE))
        return (large - small) / (LARGE - SMALL)

    if not task.model.save_memory:
        return slope()
    kept = slope()
    # and the part that backward computes again: the largest of our networks' is below a half
    task.model.save_memory = False
    plain = slope()
    task.model.save_memory = True
    return kept + plain / 2


def images_that_fit(free: float, one: float) -> int:
    """Return how many images of `one` byte each fit into a share of `free` bytes."""
    return max(int(SHARE * free / one), 0)


def power_of_two(count: int) -> int:
    """Return the largest power of two up to `count`; 0 for none."""
    return 1 << (count.bit_length() - 1) if count > 0 else 0


def kept_bytes(task: Task, context: Context, images: int) -> int:
    """Bytes that a training step on `images` keeps for backward; the network stays as it was."""
    runtime, spec = context.runtime, context.dataset.spec
    images_NCHW = runtime.images(torch.zeros(images, *spec.image_shape))
    labels_N = torch.zeros(images, dtype=torch.int64, device=runtime.device)
    sizes: dict[int, int] = {}
    before = {name: value.clone() for name, value in task.network.state_dict().items()}

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()

    task.network.train()
    with keeping(context.config.performance, note), runtime.autocast():
        result = task.step(images_NCHW, labels_N, torch.zeros(images, dtype=torch.int64))
    total = sum(sizes.values())
    del result
    task.network.load_state_dict(before)
    return total


def _processes_here(world: int, device: torch.device) -> int:
    # a GPU each; a CPU machine's memory is shared
    return world if device.type == "cpu" else 1


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; of a CPU what the machine, or the container's limit, leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (
        _number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current")
    )
    return free if limit is None or used is None else min(free, limit - used)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no cgroup of version 2, or "max"
        return None


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
