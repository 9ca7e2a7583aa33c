"""Save the state of a training, and take it up again."""

from __future__ import annotations

from typing import Any

from tser_cli.engine.runs.checkpoints import load_latest, save_checkpoint
from tser_cli.engine.runtime.seeds import random_state, restore_random_state
from tser_cli.engine.training.budget_controller import BudgetController
from tser_cli.engine.training.epoch_sums import EpochSums
from tser_cli.engine.training.job import TrainingJob
from tser_cli.engine.training.position import Position
from tser_cli.errors import DamagedError
from tser_cli.report.csv_files import metrics_csv

# What reading a state of another shape can raise, at whatever depth it differs.
NOT_OF_THIS_RUN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def save(job: TrainingJob, optimizer: Any, position: Position) -> None:
    """Write a checkpoint. Rank 0 writes it, with the sums of all processes in it."""
    sums = job.runtime.gather(position.sums.state())
    number = position.epoch * job.loader.steps_per_epoch + position.step

    def write() -> None:
        save_checkpoint(job.run.checkpoints, number, state_of(job, optimizer, position, sums))

    job.runtime.on_main(write)


def state_of(
    job: TrainingJob, optimizer: Any, position: Position, sums: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return everything that a checkpoint holds, as tensors and plain values."""
    scaler = job.runtime.accelerator.scaler
    return {
        "model": job.task.model.state_dict(),
        "adapters": job.task.adapters.state_dict() if job.task.adapters else None,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "random": random_state(),
        "epoch": position.epoch,
        "step": position.step,
        "meter": sums[0],
        "other_meters": sums[1:],
        "rows": position.rows,
        "seconds": position.seconds,
        "best_accuracy": position.best_accuracy,
        "best_state": position.best_state,
        "energy_control": job.control.controller.state() if job.control else None,
    }


def restore(job: TrainingJob, optimizer: Any) -> Position:
    """Put back the state of the newest sound checkpoint and return its position.

    Return a new position where there is no checkpoint. Rank 0 reads it for all processes, so that
    all take up the same one. Raises DamagedError where its content is none of this run's: its
    SHA-256 says only that it was written so.
    """
    warn = job.progress.warn
    state = job.runtime.on_main(lambda: load_latest(job.run.checkpoints, warn))
    if state is None:
        return Position()
    try:
        position = _take_up(job, optimizer, state)
    except NOT_OF_THIS_RUN as error:
        raise DamagedError(
            f"the checkpoint in {job.run.checkpoints} holds no state of this run ({error}). Start "
            "afresh with --resume never, or restore the folder from a copy"
        ) from error
    job.progress.say(f"going on from epoch {position.epoch + 1}, step {position.step + 1}")
    return position


def _take_up(job: TrainingJob, optimizer: Any, state: dict[str, Any]) -> Position:
    job.task.model.load_state_dict(state["model"])
    if job.task.adapters is not None:
        job.task.adapters.load_state_dict(state["adapters"])
    optimizer.load_state_dict(state["optimizer"])
    if state["scaler"] and job.runtime.accelerator.scaler:
        job.runtime.accelerator.scaler.load_state_dict(state["scaler"])
    restore_random_state(state["random"])
    if job.control is not None:
        job.control.controller = BudgetController(**state["energy_control"])
    position = Position(
        state["epoch"],
        state["step"],
        EpochSums.share_out([state["meter"], *state["other_meters"]], job.runtime),
        state["rows"],
        state["seconds"],
        state["best_accuracy"],
        state["best_state"],
    )
    if min(position.epoch, position.step, position.seconds) < 0:
        raise ValueError("it is at a step before the first")
    if job.runtime.is_main:
        metrics_csv(job.run.folder / "metrics.csv", position.rows)
    return position
