"""Sums over the images of one epoch, and how several processes share them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tser_cli.engine.runtime.processes import Runtime


@dataclass
class EpochSums:
    """Add up over the images of one epoch; the sums stay on the device and are read at its end."""

    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, images: int, values: dict[str, Tensor]) -> None:
        """Add per-image means in `values` (and the count "correct"), weighted by `images`."""
        self.images += images
        for name, value in values.items():
            amount = value.detach().double() * (1 if name == "correct" else images)
            self.sums[name] = self.sums.get(name, torch.zeros_like(amount)) + amount

    def means(self, runtime: Runtime) -> dict[str, float]:
        """Return means over all images of all processes."""
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
        sums_of_all = [cls.restore(state, runtime.device) for state in states]
        if len(sums_of_all) == runtime.world:
            return sums_of_all[runtime.rank]
        total = _together(sums_of_all)
        return total if runtime.is_main else total.emptied()

    def emptied(self) -> EpochSums:
        """Return sums of the same names that have seen no image."""
        return EpochSums(0, {name: torch.zeros_like(total) for name, total in self.sums.items()})


def _together(sums_of_all: list[EpochSums]) -> EpochSums:
    sums = {
        name: torch.stack([sums.sums[name] for sums in sums_of_all]).sum(0)
        for name in sums_of_all[0].sums
    }
    return EpochSums(sum(sums.images for sums in sums_of_all), sums)
