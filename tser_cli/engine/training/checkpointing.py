"""Save the state of a training, restore it, and open the run folder to train in."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import torch

from tser_cli.base.errors import DamagedError
from tser_cli.engine.runs import find, folder
from tser_cli.engine.runs.checkpoints import load_latest, save_checkpoint
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context, Options, keep_images
from tser_cli.engine.runs.runtime import random_state, restore_random_state
from tser_cli.engine.training.budget import BudgetController
from tser_cli.engine.training.optimizer import lr_factor
from tser_cli.engine.training.state import EpochSums, Position, TrainingJob
from tser_cli.report.csv_files import metrics_csv
from tser_cli.settings.config import EPOCHS, Config

# What reading a state of another shape can raise, at whatever depth it differs.
NOT_OF_THIS_RUN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def save(job: TrainingJob, optimizer: Any, position: Position) -> None:
    """Write a checkpoint, as tensors and plain values: reading one runs no code.

    Rank 0 writes it, with the sums of all processes in it. The weights are the same in each, the
    sums are not.
    """
    sums = job.runtime.gather(position.sums.state())  # of all, and so before rank 0 is alone
    number = position.epoch * job.loader.steps_per_epoch + position.step

    def write() -> None:
        scaler = job.runtime.accelerator.scaler
        state = {
            "model": job.task.model.state_dict(),
            "adapters": job.task.adapters.state_dict() if job.task.adapters else None,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random": random_state(),
            "epoch": position.epoch,
            "step": position.step,
            "meter": sums[0],
            "other_meters": sums[1:],
            "rows": position.rows,  # metrics.csv may be damaged, or a row ahead
            "seconds": position.seconds,
            "best_accuracy": position.best_accuracy,
            "best_state": position.best_state,
            "energy_control": job.control.controller.state() if job.control else None,
        }
        save_checkpoint(job.run.checkpoints, number, state)

    job.runtime.on_main(write)


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
    job.progress.say(f"resumed at epoch {position.epoch + 1}, step {position.step + 1}")
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
        # The file may have a row more: of an epoch that ended after this state was saved.
        metrics_csv(job.run.folder / "metrics.csv", position.rows)
    return position


def take_run(kind: str, context: Context, options: Options, held: ExitStack) -> tuple[Run, bool]:
    """Return the run to work on, locked until `held` closes, and whether it was begun before.

    Raises ConfigError or RunError where `--resume must` has nothing to resume.
    """
    found, must = None, options.resume == "must"
    # The lock comes before anything is changed: another process may be at work in the folder.
    if options.resume != "never":
        found = find.find_unfinished(options.runs_dir, kind, context.config, must)
    run = found or folder.create(options.runs_dir, kind, context.config)
    held.enter_context(run.lock())
    run.remove_leftovers()
    keep_images(run, context)
    if found is not None:
        warning = other_schedule(run, context.config)
        if warning:
            context.progress.warn(warning)
        # It may have other workers, say, than it began with: the file says what holds.
        run.write_settings(context.config)
    run.update_status(state="running", why="")
    now = {
        "command": sys.argv,
        "device": str(context.runtime.device),
        "processes": context.runtime.world,
        "threads": torch.get_num_threads(),  # the order of sums, and so their last bits
    }
    at = datetime.now().astimezone().isoformat(timespec="seconds")
    before = run.environment().get("commands")  # that have worked on the run, oldest first
    commands = [*(before if isinstance(before, list) else []), {"at": at, **now}]
    run.update_environment(**now, commands=commands)
    return run, found is not None


def other_schedule(run: Run, after: Config) -> str:
    """Say what differs where `run` is resumed with another number of epochs; "" where nothing does.

    Only `--resume must` resumes such a run, unless its learning rate knows no end.
    """
    before, epoch = run.config(), int(run.status().get("epoch", 0))
    old, new = before.training.epochs, after.training.epochs
    if old == new or after.policy(EPOCHS).resume:
        return ""
    # The factor at the beginning of an epoch does not depend on the steps that it has.
    lrs = [
        settings.optimizer.lr
        * lr_factor(epoch * 1000, 1000, settings.training.epochs, settings.schedule)
        for settings in (before, after)
    ]
    return (
        f"--resume must: {old} epochs become {new}, so that this is another run than either. After "
        f"{epoch} epochs the {after.schedule.name} learning rate continues at {lrs[1]:.4g} instead "
        f"of {lrs[0]:.4g}, and ends with epoch {new}"
    )
