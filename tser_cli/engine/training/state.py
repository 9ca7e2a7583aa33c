"""What the training loop works with, and how far it has come.

Sums over an epoch stay on the device until its end, one set a process: reading one would wait for
the device at each step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tser_cli.base.progress import Progress
from tser_cli.data.loaders import TrainLoader
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.training.budget import EnergyControl
from tser_cli.engine.training.task import Task
from tser_cli.losses.base import TrainingProgress
from tser_cli.settings.config import CHECKPOINT_EVERY, Config

Row = dict[str, Any]


@dataclass
class TrainingJob:
    """Everything that the training loop works with.

    `validate` returns the accuracy on held-out images; None where none are held out. `control`
    holds the student to an energy budget, if there is one.
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


@dataclass
class EpochSums:
    """Add up over the images of one epoch; the sums stay on the device and are read at its end."""

    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, images: int, values: dict[str, Tensor]) -> None:
        """Add per-image means in `values` (and the count "correct"), weighted by `images`."""
        self.images += images
        for name, value in values.items():
            # float64: sums of float32 over an epoch lose the last digits, by the order of batches
            amount = value.detach().double() * (1 if name == "correct" else images)
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
    def restore(cls, state: dict[str, Any], device: torch.device) -> EpochSums:
        """Return the sums that `state()` described."""
        sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in state["sums"].items()
        }
        return cls(state["images"], sums)

    @classmethod
    def share_out(cls, states: list[dict[str, Any]], runtime: Runtime) -> EpochSums:
        """Return this process's part of the sums in `states`, which has one entry a process.

        With as many processes as saved them, each takes up its own: so no sum changes its order of
        additions. With another number, rank 0 takes up all of them.
        """
        parts = [cls.restore(state, runtime.device) for state in states]
        if len(parts) == runtime.world:
            return parts[runtime.rank]
        total = {
            name: torch.stack([part.sums[name] for part in parts]).sum(0) for name in parts[0].sums
        }
        if runtime.is_main:
            return cls(sum(part.images for part in parts), total)
        # the same names, so that all processes add up the same number of sums
        return cls(0, {name: torch.zeros_like(value) for name, value in total.items()})


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

    def progress(self, steps_per_epoch: int, epochs: int) -> TrainingProgress:
        """Return what methods may know of it."""
        done = self.epoch * steps_per_epoch + self.step
        return TrainingProgress(self.epoch, done / (steps_per_epoch * epochs))


class CheckpointClock:
    """Say when the next checkpoint is due: every N minutes, epochs or steps."""

    def __init__(self, every: str, steps_per_epoch: int) -> None:
        match = CHECKPOINT_EVERY.fullmatch(every)
        assert match, "the setting was validated"
        amount, unit = int(match[1]), match[2]
        self._seconds = amount * 60.0 if unit == "min" else math.inf
        self._steps = amount * (steps_per_epoch if unit.startswith("epoch") else 1)
        self._by_time = unit == "min"
        self._last = time.monotonic()

    def now(self, steps_done: int) -> bool:
        """Return whether a checkpoint is due after `steps_done` steps; if so, restart the clock."""
        if not self._by_time:
            return steps_done % self._steps == 0
        due = time.monotonic() - self._last >= self._seconds
        if due:
            self._last = time.monotonic()
        return due
