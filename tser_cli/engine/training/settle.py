"""Settle, once and before a run begins, what its settings leave to the data and the machine.

`settle`: paths that hold from any folder, the input's size where it is to be measured, the
precision. `settle_batch_size`: how many images fit into memory, once the networks are there. What
is settled is the run's from then on: a resumed run keeps it, on any machine. A training's settings
change here alone.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.base.system import cpu_has_bf16
from tser_cli.data.own import check_files
from tser_cli.engine.runs import find, networks
from tser_cli.engine.runs.opened import Context, Options, prepare
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.engine.runs.teachers import teacher_config
from tser_cli.engine.training.task import Task
from tser_cli.models.savings import keeping
from tser_cli.report.words import counted
from tser_cli.settings import registry
from tser_cli.settings.config import AUTO, FLOAT_BITS, FRAMES, TIMESTEPS, Config

FP32, BF16 = "fp32", "bf16"
# What a run may leave open when it begins, and the value that says so.
LEFT_OPEN = {"training.batch_size": 0, "training.precision": AUTO}
PATHS = ("data.dir", "model.teacher_weights")
# These name something of the package too; only what exists as a path is one.
NAMES = ("model.teacher", "model.teacher_recipe", "energy.profile")


def settle(kind: str, config: Config, options: Options) -> Context:
    """Load the data, take the device, and settle paths, measured inputs and precision.

    Raises DataError or ConfigError.
    """
    context = prepare(with_whole_paths(config), options.progress)
    for note in context.dataset.notes:
        context.progress.warn(note)
    if facts := context.dataset.facts:
        context.progress.say("; ".join(f"{key}: {value}" for key, value in facts.items()))
    # before a step of training: else damaged test images are met after the last one
    context.runtime.on_main(lambda: check_files(context.dataset))
    measured, spec = dict(context.dataset.measured), context.dataset.spec
    if spec.frames and not context.config.data.frames:
        measured |= {FRAMES: spec.frames, TIMESTEPS: spec.frames}
    if measured:
        found = ", ".join(f"{key} = {value}" for key, value in measured.items())
        context.progress.say(f"measured on the training images: {found}")
        context = replace(context, config=context.config.updated(measured))
    return settle_precision(kind, context, options)


def with_whole_paths(config: Config) -> Config:
    """Return `config` with every path absolute, as seen from the current folder.

    A run keeps its settings so: it may be resumed or measured from another folder.
    """
    flat = config.flat()
    paths = {}
    for key in PATHS:
        # what is no path at all is left to whoever opens it: that error says more
        with suppress(OSError, RuntimeError, ValueError):
            paths[key] = str(Path(flat[key]).expanduser().absolute()) if flat[key] else ""
    found = {key: find.existing_path(flat[key]) for key in NAMES if flat[key]}
    paths |= {key: str(path.absolute()) for key, path in found.items() if path is not None}
    changed = {key: path for key, path in paths.items() if path != flat[key]}
    return config.updated(changed) if changed else config


def settle_precision(kind: str, context: Context, options: Options) -> Context:
    """Return `context` with a precision: its own, an unfinished run's, or the faster one."""
    config = context.config
    if config.training.precision != AUTO:
        return context

    def choose() -> str:
        begun = begun_like(kind, config, options)
        needs_teacher = registry.METHODS[config.method.name].needs_teacher
        if begun is None and kind == "student" and needs_teacher and options.resume != "never":
            # it may be the teacher that was interrupted: then the student is computed like it
            begun = begun_like("teacher", teacher_config(config), replace(options, resume="auto"))
        return begun.training.precision if begun else choose_precision(kind, context)

    # Rank 0 chooses for all: each would measure something else.
    config = config.updated({"training.precision": context.runtime.on_main(choose)})
    runtime = make_runtime(config.training, config.performance.channels_last)
    return replace(context, config=config, runtime=runtime)


def settle_batch_size(task: Task, kind: str, context: Context, options: Options) -> Context:
    """Return `context` with a batch size: its own, an unfinished run's, or the largest that fits.

    One that gives an epoch fewer than FEWEST_STEPS is a warning. The task is left as it was:
    measuring what fits does not change its weights.
    """
    config = context.config
    if stated := config.training.batch_size:
        images = training_images(context)
        if stated * FEWEST_STEPS > images:
            steps = counted(max(1, images // stated), "step")
            context.progress.warn(
                f"training.batch_size = {stated}: {steps} an "
                f"epoch of {images:,} training images, and the weights change once a step. Choose "
                f"a smaller one; --batch-size auto takes at most a {FEWEST_STEPS}th of the images"
            )
        return context

    def begun() -> int:
        like = begun_like(kind, config, options)
        return like.training.batch_size if like else 0

    size = context.runtime.on_main(begun) or largest_batch(task, context)
    context.progress.say(f"batch size: {size} images over all processes; lr stays as it is")
    return replace(context, config=config.updated({"training.batch_size": size}))


def begun_like(kind: str, config: Config, options: Options) -> Config | None:
    """Return `config` with what it leaves open as in the unfinished run that would be resumed.

    None where there is no such run: one that is else like it.
    """
    if options.resume == "never":
        return None
    stated = config.flat()
    left_open = [key for key, value in LEFT_OPEN.items() if stated[key] == value]
    for run in find.unfinished(options.runs_dir, kind, config):
        try:
            before = run.config().flat()
        except (ConfigError, RunError):  # damaged: that run is not resumed
            continue
        opened = config.updated({key: before[key] for key in left_open})
        if not find.differences(run, opened, must=options.resume == "must"):
            return opened
    return None


# Below so many image passes of a run there is too little to gain: about two epochs of CIFAR.
WORTH_TRYING = 100_000
# Of fp32's time a step: what is gained must be worth numbers of fewer digits.
WORTH_TAKING = 0.9
# A try takes one to two seconds: its steps have as many images as fit in.
TRY_SECONDS, ROUNDS, SMALLEST, GROWTH = 1.6, 3, 2, 4


def choose_precision(kind: str, context: Context) -> str:
    """Return the precision for a new run, and say why where it was measured."""
    config = context.config
    short = len(context.dataset.train) * config.training.epochs < WORTH_TRYING
    on_cpu = context.runtime.device.type == "cpu" and cpu_has_bf16()
    if short or not on_cpu or config.model.weight_bits != FLOAT_BITS:
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
    config, spec, runtime = context.config, context.dataset.spec, context.runtime
    name = config.model.student if kind == "student" else config.model.teacher
    model = networks.build(name, spec, config, spiking=kind == "student")
    runtime.place(model).train()

    def step(images: int, precision: str) -> float:
        began = time.process_time()
        images_NCHW = runtime.images(torch.zeros(images, *spec.sample_shape))
        labels = torch.zeros(images, dtype=torch.int64, device=runtime.device)
        with torch.autocast(runtime.device.type, torch.bfloat16, enabled=precision == BF16):
            logits = model(images_NCHW, config.model.timesteps).float()
        logits_NK = logits.mean(0) if model.spiking else logits
        F.cross_entropy(logits_NK, labels).backward()  # type: ignore[no-untyped-call]
        return time.process_time() - began

    images = images_to_try(lambda number: step(number, FP32), config.training.batch_size)
    step(images, FP32), step(images, BF16)  # the first of a size takes longer
    # in turns: a machine that slows down meanwhile slows both
    spent = [(step(images, FP32), step(images, BF16)) for _ in range(ROUNDS)]
    least_fp32, least_bf16 = (min(column) for column in zip(*spent, strict=True))
    return float(least_bf16 / least_fp32)


def images_to_try(seconds: Callable[[int], float], most: int) -> int:
    """Return how many images of a batch of `most` to try with: as many as TRY_SECONDS allow."""
    images, each = SMALLEST, TRY_SECONDS / (2 * (ROUNDS + 1))
    seconds(images)  # the first step of all takes longer than others
    while GROWTH * images <= most and GROWTH * seconds(images) <= each:
        images *= GROWTH
    return images


# An epoch of fewer steps changes the weights too rarely for the epochs that a recipe has.
FEWEST_STEPS = 16


def training_images(context: Context) -> int:
    """Return how many training images validation leaves."""
    count = len(context.dataset.train)
    return count - math.ceil(context.config.data.validation_fraction * count)


# Of the free memory; and what backward needs beside the kept tensors: the gradients of the layers
# that it is at, and workspaces.
SHARE, TRANSIENT = 0.8, 1.5
SMALL, LARGE = 4, 8
# gradient and momentum, beside weights that are there already; AdamW keeps one more
STATE = {"sgd": 2, "adamw": 3}


def largest_batch(task: Task, context: Context) -> int:
    """Return the largest batch that fits into memory, over all processes and parts of a batch.

    Each of these gets the same power of two of images; together they are at most a sixteenth of
    the training images, or two each where there are fewer. Raises ConfigError where not even one
    image a process fits.
    """
    runtime, training = context.runtime, context.config.training
    network = runtime.place(task.network)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    # a GPU each; a CPU machine's memory is shared
    sharing = runtime.world if runtime.device.type == "cpu" else 1
    copies = STATE[context.config.optimizer.name] + bool(training.ema_decay)
    free = free_bytes(runtime.device) / sharing - copies * weights
    fitting = max(int(SHARE * free / (TRANSIENT * bytes_an_image(task, context))), 0)
    parts = runtime.world * training.accumulate
    # the least of all processes: each must hold what the others do
    each = training_images(context) // parts
    most = max(each // FEWEST_STEPS, min(each, 2))  # a norm takes two
    count = min(-runtime.largest(-fitting), most)
    if not count:
        raise ConfigError(
            f"not even one image fits into the memory of {runtime.device} ({free / 1e9:.1f} GB "
            "free); try performance.save_memory, or a smaller network"
        )
    return parts * (1 << (count.bit_length() - 1))


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


def kept_bytes(task: Task, context: Context, images: int) -> int:
    """Bytes that a training step on `images` keeps for backward; the network stays as it was."""
    runtime, spec = context.runtime, context.dataset.spec
    images_NCHW = runtime.images(torch.zeros(images, *spec.sample_shape))
    labels_N = torch.zeros(images, dtype=torch.int64, device=runtime.device)
    sizes: dict[int, int] = {}
    before = {name: value.clone() for name, value in task.network.state_dict().items()}

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()  # views of one storage count once

    task.network.train()
    with keeping(context.config.performance, note), runtime.autocast():
        result = task.step(images_NCHW, labels_N, torch.zeros(images, dtype=torch.int64))
    total = sum(sizes.values())
    del result
    task.network.load_state_dict(before)
    return total


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; of a CPU what the machine, or the container's limit, leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no cgroup of version 2, or "max"
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        free = min(free, int((group / "memory.max").read_text()) - used)
    return free


OLDEST_GPU = (7, 0)  # Triton's


def compile_networks(task: Task, config: Config, device: torch.device) -> None:
    """torch.compile the networks where `performance.compile` says so.

    Raises ConfigError where that can't be done.
    """
    if config.performance.compile == "off":
        return
    if missing := what_compiling_lacks(device):
        raise ConfigError(
            f"performance.compile = on needs {missing}; install it, or leave it at off"
        )
    if task.teacher is not None:
        task.teacher.compile()
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
