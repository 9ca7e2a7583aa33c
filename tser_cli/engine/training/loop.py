"""fit(): the only training loop. It serves teacher and student, from any position in an epoch.

A training can be stopped after any step and resumed to the same bits. So all that a step depends
on is either a function of the settings and the step's number (the images, the learning rate) or is
saved (weights, momenta, random state, sums of the epoch so far, the controller of the energy).
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import torch
from torch import Tensor

from tser_cli.base.errors import Interrupted, NonFiniteError
from tser_cli.base.progress import COUNTS, TAUGHT
from tser_cli.data.loaders import Batch
from tser_cli.engine.training import state
from tser_cli.engine.training.average import WeightAverage
from tser_cli.engine.training.optimizer import lr_factor, make_optimizer, share_statistics
from tser_cli.engine.training.state import Position, Row, TrainingJob
from tser_cli.losses.base import TrainingProgress
from tser_cli.models.savings import keeping
from tser_cli.report.csv_files import metrics_csv


def fit(job: TrainingJob) -> list[Row]:
    """Train `job.task` to the end of its last epoch and return the rows of metrics.csv.

    Resume from the run's newest sound checkpoint, if there is one. The model is left with the last
    epoch's weights, or their average, or with the best on validation images where a split was asked
    for. Raises Interrupted (the state is saved), NonFiniteError (the last good checkpoint is kept)
    or RunError.
    """
    config, steps = job.config, job.loader.steps_per_epoch
    fused = config.performance.fused_optimizer and config.training.precision != "fp16"
    optimizer: Any = make_optimizer(job.task.trainable(), config.optimizer, fused)
    optimizer = job.runtime.accelerator.prepare_optimizer(optimizer)
    if config.training.ema_decay:
        job.average = WeightAverage(job.task.model, config.training.ema_decay)
    position = state.restore(job, optimizer)
    clock = state.CheckpointClock(config.training.checkpoint_every, steps)
    job.progress.begin(config.training.epochs, steps, position.epoch)
    writer = None
    if config.training.tensorboard and job.runtime.is_main:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

        writer = SummaryWriter(str(job.run.folder))
    while position.epoch < config.training.epochs:
        # for images/s: the sums of a resumed epoch begin with images of an earlier command
        images_before = position.sums.images
        stopped, seconds = train_epoch(job, optimizer, position, clock)
        if position.step < steps:
            state.save(job, optimizer, position)
        else:
            images = position.sums.images - images_before
            speed = images / max(seconds, 1e-9)
            stopped = end_epoch(job, optimizer, position, clock, stopped, speed)
            if writer is not None:
                for name, value in position.rows[-1].items():
                    if name != "epoch" and value is not None:
                        writer.add_scalar(name, value, position.epoch)
                writer.flush()
        if stopped:
            raise Interrupted(stopped)
    kept = job.average.state if job.average and not position.best_state else position.best_state
    if kept is not None:
        # after the last checkpoint, which keeps the last weights: more epochs would begin there
        job.task.model.load_state_dict(kept)
    job.progress.end()
    return position.rows


def train_epoch(
    job: TrainingJob, optimizer: Any, position: Position, clock: state.CheckpointClock
) -> tuple[int, float]:
    """Train from `position` to the end of its epoch, or until a signal asks to stop.

    Return the signal's number (0 for none) and the seconds spent.
    """
    runtime, config, steps = job.runtime, job.config, job.loader.steps_per_epoch
    job.task.network.train()
    began, stopped = time.monotonic(), 0
    for batch in job.loader.epoch(position.epoch, position.step):
        number = position.epoch * steps + position.step
        factor = lr_factor(number, steps, config.training.epochs, config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * factor
        values = train_step(job, optimizer, batch, position)
        if job.average is not None:
            job.average.update(number + 1)
        position.step += 1
        position.sums.add(len(batch.labels_N), values)
        if job.control is not None:
            job.control.follow(values, len(batch.labels_N), runtime)
        job.progress.step(len(batch.labels_N) * runtime.world, values)
        # A signal may reach one process alone: the largest number makes all of them stop here.
        if stopped := runtime.largest(job.stop.signal or 0):
            break
        # Each process has a clock of its own: that of rank 0 counts, so that all save together.
        if position.step < steps and runtime.any(runtime.is_main and clock.now(number + 1)):
            state.save(job, optimizer, position)
    seconds = time.monotonic() - began
    position.seconds += seconds
    return stopped, seconds


def train_step(
    job: TrainingJob, optimizer: Any, batch: Batch, position: Position
) -> dict[str, Tensor]:
    """Take one optimizer step on one global batch; return the terms and the counts in COUNTS."""
    runtime, accumulate = job.runtime, job.config.training.accumulate
    images = runtime.images(batch.images_NCHW)
    labels = batch.labels_N.to(runtime.device, non_blocking=True)
    # They stay on the device: to read one here would make the CPU wait for it, part by part.
    values: dict[str, Tensor] = {}
    steps = job.loader.steps_per_epoch
    done = (position.epoch * steps + position.step) / (steps * job.config.training.epochs)
    progress = TrainingProgress(position.epoch, done)
    multiplier = job.control.controller.multiplier if job.control else 0.0
    optimizer.zero_grad(set_to_none=True)
    parts = [of_N.chunk(accumulate) for of_N in (images, labels, batch.indices_N)]
    targets: Any = [None] * len(parts[0])
    if batch.targets_NK is not None:
        targets = batch.targets_NK.to(runtime.device, non_blocking=True).chunk(accumulate)
    chunks = list(zip(*parts, targets, strict=True))
    for index, (part, part_labels, part_indices, part_targets) in enumerate(chunks):
        # Parts may differ in size: weighted by their images they sum to the loss of the batch.
        share = len(part_labels) / len(labels)
        # The processes exchange gradients once a step, with the last part.
        last = index == len(chunks) - 1
        quiet = contextlib.nullcontext() if last else runtime.accelerator.no_sync(job.task.network)
        with quiet:
            with runtime.autocast(), keeping(job.config.performance):
                result = job.task.step(
                    part, part_labels, part_indices, progress, multiplier, part_targets
                )
            runtime.accelerator.backward(result.terms["loss"] * share)
        for name, term in result.terms.items():
            values[name] = values.get(name, torch.zeros_like(term.detach())) + term.detach() * share
        for name, right in (("correct", result.correct), (TAUGHT, result.teacher_correct)):
            if right is not None:
                values[name] = values.get(name, torch.zeros_like(right)) + right
    # before the step: the weights that are kept have then met no number that is not finite
    check_finite(job, values, position)
    if job.config.training.clip_norm:
        moved = [parameter for _, parameter in job.task.named_parameters()]
        runtime.accelerator.unscale_gradients()  # of fp16: the norm is one of true gradients
        # accelerate's own function is for sharded tensors too, and imports half a second of torch
        torch.nn.utils.clip_grad_norm_(moved, job.config.training.clip_norm)
    optimizer.step()
    return values


def end_epoch(
    job: TrainingJob,
    optimizer: Any,
    position: Position,
    clock: state.CheckpointClock,
    stopped: int,
    images_per_second: float,
) -> int:
    """Validate, record the epoch, move to the next, and save where that is due.

    Return the signal that asked to stop, or 0. Raises Interrupted, with `position` as it was, where
    validation hears of it.
    """
    runtime = job.runtime
    # first, so that what is validated is what is saved
    share_statistics(job.task.network, runtime)
    means = position.sums.means(runtime)
    try:
        with job.kept_weights():
            accuracy = job.validate() if job.validate else None
    except Interrupted:
        # The epoch's end is computed again when the run is resumed.
        state.save(job, optimizer, position)
        raise
    better = accuracy is not None and accuracy > position.best_accuracy
    # An epoch that is over the budget is no candidate: the last one then counts.
    if accuracy is not None and better and (not job.control or job.control.keeps_budget()):
        position.best_accuracy = accuracy
        kept = job.average.state if job.average else job.task.model.state_dict()
        position.best_state = {name: value.detach().clone() for name, value in kept.items()}
    row: Row = {
        "epoch": position.epoch + 1,
        "lr": optimizer.param_groups[0]["lr"],
        **{name: mean for name, mean in means.items() if name not in COUNTS},
        **(job.control.columns() if job.control else {}),
        "train_accuracy": means["correct"],
        **_taught(means, position),
        "validation_accuracy": accuracy,
        "images_per_second": images_per_second * runtime.world,
        "seconds": position.seconds,
    }
    position.rows.append(row)
    position.epoch, position.step = position.epoch + 1, 0
    position.sums, position.seconds = state.EpochSums(), 0.0

    # metrics.csv comes before the checkpoint: a kill between the two leaves a row too many, which
    # resuming takes away again, and never one too few.
    def record() -> None:
        job.run.update_status(epoch=position.epoch)
        metrics_csv(job.run.folder / "metrics.csv", position.rows)

    runtime.on_main(record)
    job.progress.epoch(row)
    stopped = stopped or runtime.largest(job.stop.signal or 0)
    last = position.epoch == job.config.training.epochs
    due = runtime.any(runtime.is_main and clock.now(position.epoch * job.loader.steps_per_epoch))
    if stopped or last or due:
        state.save(job, optimizer, position)
    return stopped


def _taught(means: dict[str, float], position: Position) -> Row:
    # a run that began without this column goes on so: all rows have the columns of the first
    told = TAUGHT in means and all("teacher_train_accuracy" in row for row in position.rows)
    return {"teacher_train_accuracy": means[TAUGHT]} if told else {}


def check_finite(job: TrainingJob, values: dict[str, Tensor], position: Position) -> None:
    """Raise NonFiniteError on all processes where a loss or gradient of any is not finite.

    Under fp16 infinite gradients are ordinary (the loss scale adapts), so only the loss counts.
    """
    bad_loss = bad = not math.isfinite(float(values["loss"]))
    if not bad and job.config.training.precision != "fp16":
        gradients = [p.grad for _, p in job.task.named_parameters() if p.grad is not None]
        bad = not math.isfinite(float(torch.nn.utils.get_total_norm(gradients)))
    if not job.runtime.any(bad):
        return
    named = ", ".join(f"{name} = {float(value):g}" for name, value in values.items())
    layers = [
        name
        for name, p in job.task.named_parameters()
        if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    where = f"gradients of {', '.join(layers[:3])}{' ...' if len(layers) > 3 else ''}"
    several = bad_loss and job.runtime.world > 1
    process = f"{job.runtime.process_description} has " if several else ""
    told = f"{process}{named}; {where if layers else 'the gradients here are finite'}"
    findings = job.runtime.gather((bad_loss, told))
    # Gradients are means over all processes by now: only a loss says whose fault it is.
    finding = next((text for culprit, text in findings if culprit), findings[0][1])
    saved = job.runtime.on_main(lambda: any(job.run.checkpoints.glob("step-*")))
    kept = f" The last good checkpoint is kept in {job.run.checkpoints}." if saved else ""
    error = NonFiniteError(
        f"the loss or a gradient is not finite at epoch {position.epoch + 1}, step "
        f"{position.step + 1}: {finding}.{kept} Try a lower --lr, a warm-up, "
        "training.clip_norm, or fp32"
    )
    job.runtime.fail(error)
