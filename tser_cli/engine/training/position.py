"""How far a training has come, and when to save it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tser_cli.config import CHECKPOINT_EVERY
from tser_cli.engine.training.epoch_sums import EpochSums
from tser_cli.losses.base import TrainingProgress

Row = dict[str, Any]


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
        """Return what methods are told of it."""
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
        if self._by_time:
            due = time.monotonic() - self._last >= self._seconds
            if due:
                self._last = time.monotonic()
            return due
        return steps_done % self._steps == 0
