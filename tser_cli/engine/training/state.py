"""What the training loop works with, how far it has come, and how that is saved and restored.

Sums over an epoch stay on the device until its end, one set a process: reading one would wait for
the device at each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tser_cli.base.errors import DamagedError
from tser_cli.base.progress import COUNTS, TAUGHT, Progress
from tser_cli.data.loaders import TrainLoader
from tser_cli.engine.runs.checkpoints import load_latest, save_checkpoint
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.runtime import Runtime, random_state, restore_random_state
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.training.average import WeightAverage
from tser_cli.engine.training.budget import BudgetController, EnergyControl
from tser_cli.engine.training.optimizer import share_statistics
from tser_cli.engine.training.task import Task
from tser_cli.report.csv_files import metrics_csv
from tser_cli.settings.config import CHECKPOINT_EVERY, Config

Row = dict[str, Any]


@dataclass
class TrainingJob:
    """Everything that the training loop works with.

    `validate` returns the accuracy on held-out images; None where none are held out. `control`
    holds the student to an energy budget, if there is one. `average` is what is kept in place of
    the last weights, if that was asked for.
    """

    task: Task
    loader: TrainLoader
    config: Config
    run: Run
    runtime: Runtime
    progress: Progress
    stop: StopRequest
    validate: Callable[[], float] | None = None
    control: EnergyControl | None = None
    average: WeightAverage | None = None

    @contextmanager
    def kept_weights(self) -> Iterator[None]:
        """Inside, the network has the weights that would be kept if the training ended here."""
        if self.average is None:
            yield
            return
        with self.average.in_use():
            # of the average too each process has running statistics of its own
            share_statistics(self.task.network, self.runtime)
            yield


@dataclass
class EpochSums:
    """Add up over the images of one epoch; the sums stay on the device and are read at its end."""

    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, images: int, values: dict[str, Tensor]) -> None:
        """Add per-image means in `values` (and the counts in COUNTS), weighted by `images`."""
        self.images += images
        # of a checkpoint from before there was such a sum: a part of the epoch is not its share
        late = TAUGHT if self.sums and TAUGHT not in self.sums else None
        for name, value in values.items():
            if name == late:
                continue
            # float64: sums of float32 over an epoch lose the last digits, by the order of batches
            amount = value.detach().double() * (1 if name in COUNTS else images)
            self.sums[name] = self.sums.get(name, torch.zeros_like(amount)) + amount

    def means(self, runtime: Runtime) -> dict[str, float]:
        """Return means over all images of all processes."""
        # sums before the quotient: the mean of the processes' means would weigh batches of unequal
        # size alike
        images = int(runtime.sum(torch.tensor([self.images]))[0])
        totals = runtime.sum(torch.stack(list(self.sums.values())))
        return {name: float(total) / images for name, total in zip(self.sums, totals, strict=True)}

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {"images": self.images, "sums": {k: float(v) for k, v in self.sums.items()}}

    @classmethod
    def share_out(cls, states: list[dict[str, Any]], runtime: Runtime) -> EpochSums:
        """Return this process's part of the sums in `states`, which has one entry a process.

        With as many processes as saved them, each takes up its own: so no sum changes its order of
        additions. With another number, rank 0 takes up all of them.
        """
        mine = states if runtime.is_main else []
        if len(states) == runtime.world:
            mine = [states[runtime.rank]]
        # the same names, so that all processes add up the same number of sums
        sums = {
            name: torch.tensor(
                sum(state["sums"][name] for state in mine),
                dtype=torch.float64,
                device=runtime.device,
            )
            for name in states[0]["sums"]
        }
        return cls(sum(state["images"] for state in mine), sums)


@dataclass
class Position:
    """Say how far a training has come, with all that a checkpoint holds besides the tensors."""

    epoch: int = 0
    step: int = 0
    sums: EpochSums = field(default_factory=EpochSums)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_state: dict[str, Tensor] | None = None


class CheckpointClock:
    """Say when the next checkpoint is due: every N minutes, epochs or steps."""

    def __init__(self, every: str, steps_per_epoch: int) -> None:
        match = CHECKPOINT_EVERY.fullmatch(every)
        assert match, "the setting was validated"
        amount, unit = int(match[1]), match[2]
        self._seconds = amount * 60.0 if unit == "min" else None
        self._steps = amount * (steps_per_epoch if unit.startswith("epoch") else 1)
        self._last = time.monotonic()

    def now(self, steps_done: int) -> bool:
        """Return whether a checkpoint is due after `steps_done` steps; if so, restart the clock."""
        if self._seconds is None:
            return steps_done % self._steps == 0
        due = time.monotonic() - self._last >= self._seconds
        if due:
            self._last = time.monotonic()
        return due


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
        job.run.check_place()
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
            "average": job.average.state if job.average else None,
            "energy_control": dict(vars(job.control.controller)) if job.control else None,
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
    if state["best_state"] is not None:
        job.task.model.load_state_dict(state["best_state"])  # it has to fit, too: the end is by it
    if job.average is not None:
        job.task.model.load_state_dict(state["average"])
        job.average.restart()
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
    if min(position.epoch, position.step, position.seconds, position.best_accuracy + 1) < 0:
        raise ValueError("it is at a step before the first")
    if job.runtime.is_main:
        # The file may have a row more: of an epoch that ended after this state was saved.
        metrics_csv(job.run.folder / "metrics.csv", position.rows)
    return position
