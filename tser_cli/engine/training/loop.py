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
from tser_cli.engine.runs.checkpoints import load_latest, save_checkpoint
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime import processes
from tser_cli.engine.runtime.processes import Runtime
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.engine.training.data_parallel import share_statistics
from tser_cli.engine.training.optimizer import lr_factor, make_optimizer, set_lr
from tser_cli.engine.training.position import CheckpointClock, Meter, Position, Row
from tser_cli.engine.training.task import Task
from tser_cli.errors import Interrupted, NonFiniteError
from tser_cli.report.csv_files import metrics_csv
from tser_cli.report.progress import Progress


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
        make_optimizer(
            work.task.trainable(),
            work.config.optimizer,
            work.config.performance.fused_optimizer and training.precision != "fp16",
        )
    )
    position = restore(work, optimizer)
    due = CheckpointClock(training.checkpoint_every, work.loader.steps_per_epoch)
    work.progress.begin(training.epochs, work.loader.steps_per_epoch, position.epoch)
    steps = work.loader.steps_per_epoch
    writer = make_writer(work)
    while position.epoch < training.epochs:
        work.task.network.train()
        began, already, stopped = time.monotonic(), position.meter.images, 0
        for batch in work.loader.epoch(position.epoch, position.step):
            number = position.epoch * steps + position.step
            factor = lr_factor(number, steps, training.epochs, work.config.schedule)
            set_lr(optimizer, work.config.optimizer.lr * factor)
            values = train_step(work, optimizer, batch, position)
            position.step += 1
            position.meter.add(len(batch.labels_N), values)
            work.progress.step(len(batch.labels_N) * runtime.world, values)
            if stopped := runtime.largest(work.stop.signal or 0):
                break
            # the first process's clock counts: each has its own
            if position.step < steps and runtime.any(runtime.is_main and due.now(number + 1)):
                save(work, optimizer, position)
        spent = time.monotonic() - began
        position.seconds += spent
        if position.step >= steps:
            try:
                finish_epoch(work, position, optimizer, position.meter.images - already, spent)
            except Interrupted:
                save(work, optimizer, position)
                raise
            write_scalars(writer, position.rows[-1])
            stopped = stopped or runtime.largest(work.stop.signal or 0)
            last = position.epoch == training.epochs
            is_due = runtime.any(runtime.is_main and due.now(position.epoch * steps))
            if stopped or last or is_due:
                save(work, optimizer, position)
        else:
            save(work, optimizer, position)
        if stopped:
            raise Interrupted(stopped)
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
    progress = position.progress(work.loader.steps_per_epoch, work.config.training.epochs)
    optimizer.zero_grad(set_to_none=True)
    parts = [values.chunk(accumulate) for values in (images, labels, batch.indices_N)]
    chunks = list(zip(*parts, strict=True))
    for index, (part, part_labels, part_indices) in enumerate(chunks):
        share = len(part_labels) / len(labels)
        last = index == len(chunks) - 1
        quiet = contextlib.nullcontext() if last else runtime.accelerator.no_sync(work.task.network)
        with quiet:
            with runtime.autocast():
                result = work.task.step(part, part_labels, part_indices, progress)
            runtime.accelerator.backward(result.terms["loss"] * share)
        for name, term in result.terms.items():
            values[name] = values.get(name, torch.zeros_like(term.detach())) + term.detach() * share
        values["correct"] = values.get("correct", torch.zeros_like(result.correct)) + result.correct
    check_finite(work, values, position)
    if work.config.training.clip_norm:
        moved = [parameter for _, parameter in work.task.named_parameters()]
        runtime.accelerator.clip_grad_norm_(moved, work.config.training.clip_norm)
    optimizer.step()
    return values


def check_finite(work: Fit, values: dict[str, Tensor], position: Position) -> None:
    """Raise NonFiniteError on all processes where a loss or gradient of any is not finite.

    Under fp16 infinite gradients are ordinary (the loss scale adapts), so only the loss counts.
    """
    bad_loss = bad = not math.isfinite(float(values["loss"]))
    if not bad and work.config.training.precision != "fp16":
        gradients = [p.grad for _, p in work.task.named_parameters() if p.grad is not None]
        bad = not math.isfinite(float(torch.nn.utils.get_total_norm(gradients)))
    if not work.runtime.any(bad):
        return
    findings = work.runtime.gather((bad_loss, describe_terms(work, values, bad_loss)))
    # gradients are means over all processes by now, so that only a loss tells whose fault it is
    finding = next((text for culprit, text in findings if culprit), findings[0][1])
    saved = work.runtime.on_main(lambda: any(work.run.checkpoints.glob("step-*")))
    kept = f" The last good checkpoint is kept in {work.run.checkpoints}." if saved else ""
    error = NonFiniteError(
        f"the loss or a gradient is not finite at epoch {position.epoch + 1}, step "
        f"{position.step + 1}: {finding}.{kept} Try a lower --lr, a warm-up, "
        "training.clip_norm, or fp32"
    )
    work.runtime.fail(error)


def describe_terms(work: Fit, values: dict[str, Tensor], culprit: bool) -> str:
    """The terms of a step and the layers whose gradients are not finite, for a message."""
    named = ", ".join(f"{name} = {float(value):g}" for name, value in values.items())
    layers = [
        name
        for name, p in work.task.named_parameters()
        if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    where = f"gradients of {', '.join(layers[:3])}{' ...' if len(layers) > 3 else ''}"
    who = f"{work.runtime.who} has " if culprit and work.runtime.world > 1 else ""
    return f"{who}{named}; {where if layers else 'the gradients here are finite'}"


def finish_epoch(
    work: Fit, position: Position, optimizer: Any, images: int, seconds: float
) -> None:
    """Validate, add the epoch's row, move to the next epoch.

    Raises Interrupted, with `position` as it was, where validation hears a request to stop.
    """
    share_statistics(work.task.network, work.runtime)
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
    work.runtime.on_main(lambda: record_epoch(work, position))
    work.progress.epoch(row)


def record_epoch(work: Fit, position: Position) -> None:
    """Write the rows so far and the number of finished epochs."""
    metrics_csv(work.run.folder / "metrics.csv", position.rows)
    work.run.update_status(epoch=position.epoch)


def save(work: Fit, optimizer: Any, position: Position) -> None:
    """Write a checkpoint (the first process alone, with what only the others know)."""
    meters = work.runtime.gather(position.meter.state())
    number = position.epoch * work.loader.steps_per_epoch + position.step

    def write() -> None:
        save_checkpoint(work.run.checkpoints, number, state_of(work, optimizer, position, meters))

    work.runtime.on_main(write)


def state_of(
    work: Fit, optimizer: Any, position: Position, meters: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything that a checkpoint holds, as tensors and plain values."""
    scaler = work.runtime.accelerator.scaler
    return {
        "model": work.task.model.state_dict(),
        "adapters": work.task.adapters.state_dict() if work.task.adapters else None,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "random": processes.random_state(),
        "epoch": position.epoch,
        "step": position.step,
        "meter": meters[0],
        "other_meters": meters[1:],
        "rows": position.rows,
        "seconds": position.seconds,
        "best_accuracy": position.best_accuracy,
        "best_state": position.best_state,
    }


def restore(work: Fit, optimizer: Any) -> Position:
    """The position of the newest sound checkpoint, its state put back; a new one if none is.

    The first process reads it for all of them, so that all take up the same one.
    """
    warn = work.progress.warn
    state = work.runtime.on_main(lambda: load_latest(work.run.checkpoints, warn))
    if state is None:
        return Position()
    work.task.model.load_state_dict(state["model"])
    if work.task.adapters is not None:
        work.task.adapters.load_state_dict(state["adapters"])
    optimizer.load_state_dict(state["optimizer"])
    if state["scaler"] and work.runtime.accelerator.scaler:
        work.runtime.accelerator.scaler.load_state_dict(state["scaler"])
    processes.restore_random_state(state["random"])
    position = Position(
        state["epoch"],
        state["step"],
        Meter.share_out([state["meter"], *state["other_meters"]], work.runtime),
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
