"""How far a training has come: the sums of the epoch, the position, and when to save."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tser_cli.config import CHECKPOINT_EVERY
from tser_cli.engine.runtime.processes import Runtime
from tser_cli.losses.base import TrainingProgress

Row = dict[str, Any]


@dataclass
class Meter:
    """Sums over the images of one epoch, kept on the device and read once at its end."""

    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, images: int, values: dict[str, Tensor]) -> None:
        """Add per-image means in `values` (and the count "correct"), weighted by `images`."""
        self.images += images
        for name, value in values.items():
            amount = value.detach().double() * (1 if name == "correct" else images)
            self.sums[name] = self.sums.get(name, torch.zeros_like(amount)) + amount

    def means(self, runtime: Runtime) -> dict[str, float]:
        """Means over all images of all processes."""
        images = int(runtime.sum(torch.tensor([self.images]))[0])
        totals = runtime.sum(torch.stack(list(self.sums.values())))
        return {name: float(total) / images for name, total in zip(self.sums, totals, strict=True)}

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"images": self.images, "sums": {k: float(v) for k, v in self.sums.items()}}

    @classmethod
    def restore(cls, state: dict[str, Any], device: torch.device) -> Meter:
        """The meter that `state()` described."""
        sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in state["sums"].items()
        }
        return cls(state["images"], sums)

    @classmethod
    def share_out(cls, states: list[dict[str, Any]], runtime: Runtime) -> Meter:
        """This process's part of the meters that `states` describe, one a process that saved.

        As many processes take up their own, so that no sum changes its order of additions; another
        number leaves them all to the first.
        """
        meters = [cls.restore(state, runtime.device) for state in states]
        if len(meters) == runtime.world:
            return meters[runtime.rank]
        total = _together(meters)
        return total if runtime.is_main else total.emptied()

    def emptied(self) -> Meter:
        """A meter of the same names that has seen no image."""
        return Meter(0, {name: torch.zeros_like(total) for name, total in self.sums.items()})


def _together(meters: list[Meter]) -> Meter:
    sums = {
        name: torch.stack([meter.sums[name] for meter in meters]).sum(0) for name in meters[0].sums
    }
    return Meter(sum(meter.images for meter in meters), sums)


@dataclass
class Position:
    """How far a fit has come, and everything that a checkpoint holds besides the tensors."""

    epoch: int = 0
    step: int = 0
    meter: Meter = field(default_factory=Meter)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_state: dict[str, Tensor] | None = None

    def progress(self, steps_per_epoch: int, epochs: int) -> TrainingProgress:
        """What methods are told of it."""
        done = self.epoch * steps_per_epoch + self.step
        return TrainingProgress(self.epoch, done / (steps_per_epoch * epochs))


class CheckpointClock:
    """When the next checkpoint is due: every N minutes, epochs or steps."""

    def __init__(self, every: str, steps_per_epoch: int) -> None:
        match = CHECKPOINT_EVERY.fullmatch(every)
        assert match, "the setting was validated"
        amount, unit = int(match[1]), match[2]
        self._seconds = amount * 60.0 if unit == "min" else math.inf
        self._steps = amount * (steps_per_epoch if unit.startswith("epoch") else 1)
        self._by_time = unit == "min"
        self._last = time.monotonic()

    def now(self, steps_done: int) -> bool:
        """Whether a checkpoint is due after `steps_done` steps; restarts the clock if so."""
        if self._by_time:
            due = time.monotonic() - self._last >= self._seconds
            if due:
                self._last = time.monotonic()
            return due
        return steps_done % self._steps == 0
