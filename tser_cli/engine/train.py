"""fit(): the only training loop. It serves teacher and student, from any position in an epoch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tser_cli.config import Config
from tser_cli.data.loaders import Batch, TrainLoader
from tser_cli.engine import distributed
from tser_cli.engine.checkpoint import load_latest, save_checkpoint
from tser_cli.engine.distributed import Runtime
from tser_cli.engine.optim import lr_factor, make_optimizer, set_lr
from tser_cli.engine.runs import Run
from tser_cli.engine.signals import StopRequest
from tser_cli.engine.state import CheckpointClock, Meter, Position, Row
from tser_cli.engine.tasks import Task
from tser_cli.errors import Interrupted, NonFiniteError
from tser_cli.report.progress import Progress
from tser_cli.report.tables import metrics_csv


@dataclass
class Fit:
    """What the loop works with."""

    task: Task
    loader: TrainLoader
    config: Config
    run: Run
    runtime: Runtime
    progress: Progress
    stop: StopRequest
    validate: Callable[[], float] | None = None


def fit(work: Fit) -> list[Row]:
    """Train `work.task` to the end of its last epoch; returns the rows of metrics.csv.

    Goes on from the run's newest sound checkpoint where there is one. The model is left with the
    last epoch's weights, or the best on validation images where a split was asked for. Raises
    Interrupted (state saved), NonFiniteError (last good checkpoint kept) or RunError.
    """
    training, runtime = work.config.training, work.runtime
    optimizer = runtime.accelerator.prepare_optimizer(
        make_optimizer(work.task.trainable(), work.config.optimizer)
    )
    position = restore(work, optimizer)
    due = CheckpointClock(training.checkpoint_every, work.loader.steps_per_epoch)
    work.progress.begin(training.epochs, work.loader.steps_per_epoch, position.epoch)
    steps = work.loader.steps_per_epoch
    writer = make_writer(work)
    while position.epoch < training.epochs:
        work.task.network.train()
        began, already, stopped = time.monotonic(), position.meter.images, False
        for batch in work.loader.epoch(position.epoch, position.step):
            number = position.epoch * steps + position.step
            factor = lr_factor(number, steps, training.epochs, work.config.schedule)
            set_lr(optimizer, work.config.optimizer.lr * factor)
            values = train_step(work, optimizer, batch, position)
            position.step += 1
            position.meter.add(len(batch.labels_N), values)
            work.progress.step(len(batch.labels_N) * runtime.world, values)
            if stopped := runtime.any(work.stop.requested):
                break
            if position.step < steps and runtime.any(due.now(number + 1)):
                save(work, optimizer, position)
        spent = time.monotonic() - began
        position.seconds += spent
        if position.step >= steps:
            finish_epoch(work, position, optimizer, position.meter.images - already, spent)
            write_scalars(writer, position.rows[-1])
            if stopped or position.epoch == training.epochs or due.now(position.epoch * steps):
                save(work, optimizer, position)
        else:
            save(work, optimizer, position)
        if stopped:
            raise Interrupted(work.stop.signal or 15)
    if position.best_state is not None:
        work.task.model.load_state_dict(position.best_state)
    work.progress.end()
    return position.rows


def train_step(work: Fit, optimizer: Any, batch: Batch, position: Position) -> dict[str, Tensor]:
    """One optimizer step on one global batch; returns the terms and the count "correct"."""
    runtime, accumulate = work.runtime, work.config.training.accumulate
    images = runtime.images(batch.images_NCHW)
    labels = batch.labels_N.to(runtime.device, non_blocking=True)
    values: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    chunks = list(zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True))
    for index, (part, part_labels) in enumerate(chunks):
        share = len(part_labels) / len(labels)
        last = index == len(chunks) - 1
        quiet = contextlib.nullcontext() if last else runtime.accelerator.no_sync(work.task.network)
        with quiet:
            with runtime.autocast():
                result = work.task.step(part, part_labels)
            runtime.accelerator.backward(result.terms["loss"] * share)
        for name, term in result.terms.items():
            values[name] = values.get(name, torch.zeros_like(term.detach())) + term.detach() * share
        values["correct"] = values.get("correct", torch.zeros_like(result.correct)) + result.correct
    check_finite(work, values, position)
    if work.config.training.clip_norm:
        runtime.accelerator.clip_grad_norm_(
            work.task.model.parameters(), work.config.training.clip_norm
        )
    optimizer.step()
    return values


def check_finite(work: Fit, values: dict[str, Tensor], position: Position) -> None:
    """Raise NonFiniteError on all processes where a loss or gradient of any is not finite.

    Under fp16 infinite gradients are ordinary (the loss scale adapts), so only the loss counts.
    """
    bad = not math.isfinite(float(values["loss"]))
    if not bad and work.config.training.precision != "fp16":
        gradients = [p.grad for p in work.task.model.parameters() if p.grad is not None]
        bad = not math.isfinite(float(torch.nn.utils.get_total_norm(gradients)))
    if not work.runtime.any(bad):
        return
    named = ", ".join(f"{name} = {float(value):g}" for name, value in values.items())
    layers = [
        name
        for name, p in work.task.model.named_parameters()
        if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    raise NonFiniteError(
        f"the loss or a gradient is not finite at epoch {position.epoch + 1}, step "
        f"{position.step + 1}: {named}; gradients of {', '.join(layers[:3]) or 'another process'}"
        f"{' ...' if len(layers) > 3 else ''}. The last good checkpoint is kept in "
        f"{work.run.checkpoints}. Try a lower --lr, a warm-up, training.clip_norm, or fp32"
    )


def finish_epoch(
    work: Fit, position: Position, optimizer: Any, images: int, seconds: float
) -> None:
    """Validate, add the epoch's row, move to the next epoch."""
    means = position.meter.means(work.runtime)
    accuracy = work.validate() if work.validate else None
    if accuracy is not None and accuracy > position.best_accuracy:
        position.best_accuracy = accuracy
        position.best_state = {
            name: value.detach().clone() for name, value in work.task.model.state_dict().items()
        }
    row: Row = {
        "epoch": position.epoch + 1,
        "lr": optimizer.param_groups[0]["lr"],
        **{name: mean for name, mean in means.items() if name != "correct"},
        "train_accuracy": means["correct"],
        "validation_accuracy": accuracy,
        "images_per_second": images * work.runtime.world / max(seconds, 1e-9),
        "seconds": position.seconds,
    }
    position.rows.append(row)
    position.epoch, position.step, position.meter, position.seconds = (
        position.epoch + 1,
        0,
        Meter(),
        0.0,
    )
    if work.runtime.is_main:
        metrics_csv(work.run.folder / "metrics.csv", position.rows)
        work.run.update_status(epoch=position.epoch)
    work.progress.epoch(row)


def save(work: Fit, optimizer: Any, position: Position) -> None:
    """Write a checkpoint (the first process alone)."""
    if work.runtime.is_main:
        scaler = work.runtime.accelerator.scaler
        state = {
            "model": work.task.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random": distributed.random_state(),
            "epoch": position.epoch,
            "step": position.step,
            "meter": position.meter.state(),
            "rows": position.rows,
            "seconds": position.seconds,
            "best_accuracy": position.best_accuracy,
            "best_state": position.best_state,
        }
        number = position.epoch * work.loader.steps_per_epoch + position.step
        save_checkpoint(work.run.checkpoints, number, state)
    work.runtime.wait()


def restore(work: Fit, optimizer: Any) -> Position:
    """The position of the newest sound checkpoint, its state put back; a new one if none is."""
    state = load_latest(work.run.checkpoints, work.progress.warn)
    if state is None:
        return Position()
    work.task.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if state["scaler"] and work.runtime.accelerator.scaler:
        work.runtime.accelerator.scaler.load_state_dict(state["scaler"])
    distributed.restore_random_state(state["random"])
    position = Position(
        state["epoch"],
        state["step"],
        Meter.restore(state["meter"], work.runtime.device),
        state["rows"],
        state["seconds"],
        state["best_accuracy"],
        state["best_state"],
    )
    if work.runtime.is_main:
        metrics_csv(work.run.folder / "metrics.csv", position.rows)
    work.progress.say(f"going on from epoch {position.epoch + 1}, step {position.step + 1}")
    return position


def make_writer(work: Fit) -> Any:
    """A TensorBoard writer in the run folder, or None where it is turned off."""
    if not work.config.training.tensorboard or not work.runtime.is_main:
        return None
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

    return SummaryWriter(str(work.run.folder))


def write_scalars(writer: Any, row: Row) -> None:
    """One point on every curve for this epoch."""
    if writer is None:
        return
    for name, value in row.items():
        if name != "epoch" and value is not None:
            writer.add_scalar(name, value, row["epoch"])
    writer.flush()
