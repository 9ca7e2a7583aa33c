"""`--precision auto`: bf16 where this machine's CPU is faster with it, else fp32.

What is chosen is the run's from then on: a run that goes on keeps it, on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional as F

from tser_cli import registry
from tser_cli.config import FLOAT_BITS
from tser_cli.engine.runs import find_runs, model_files
from tser_cli.engine.runtime.context import Context, Options
from tser_cli.engine.runtime.processes import make_runtime
from tser_cli.engine.teachers.find import teacher_config
from tser_cli.models import Classifier
from tser_cli.operating_system import cpu_has_bf16

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
    like = find_runs.begun_like(options.runs_dir, kind, config, options.resume == "must")
    if like is None and kind == "student" and registry.METHODS[config.method.name].needs_teacher:
        like = find_runs.begun_like(options.runs_dir, "teacher", teacher_config(config))
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
    model = model_files.build(name, spec, config, spiking=spiking)
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
