"""What layers of neurons do while a network is counted: updates, spikes, and who never fires."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tser_cli.energy.axes import Axes
from tser_cli.energy.calls import Batch
from tser_cli.energy.counts import NeuronCounts


@dataclass
class Firing:
    """A layer of neurons: its calls, [steps, images] spikes each, and which neurons fired.

    `ever` and `always`: of each neuron, whether it fired at all, and whether at every step of
    every image. Only updates are counted unless a batch is `detailed`.
    """

    name: str
    type: str
    updates: int = 0
    sent: list[tuple[Batch, Tensor]] = field(default_factory=list)
    ever: Tensor | None = None
    always: Tensor | None = None

    def add(self, output: Tensor, axes: Axes, batch: Batch) -> None:
        """Count one call, whose output may hold all steps or one."""
        steps = axes.steps(tuple(output.shape), batch.timesteps)
        self.updates = output.numel() // (steps * batch.images)
        if not batch.detailed:
            return
        rows = axes.rows(output.detach(), batch.timesteps)
        fired = rows.reshape(steps, batch.images, -1).ne(0).float()
        self.sent.append((batch, fired.sum(-1).long()))
        ever, always = fired.amax((0, 1)).bool(), fired.amin((0, 1)).bool()
        self.ever = ever if self.ever is None else self.ever | ever
        self.always = always if self.always is None else self.always & always

    def counts(self, timesteps: int, images: list[int]) -> NeuronCounts:
        """Return the spikes of all batches, [T, I], and the neurons that never or always fired."""
        if not self.sent:
            return NeuronCounts(self.name, self.type, self.updates)
        parts = [torch.zeros(timesteps, count, dtype=torch.int64) for count in images]
        for batch, fired in self.sent:
            start = batch.step or 0
            parts[batch.number][start : start + len(fired)] += fired.cpu()
        return NeuronCounts(
            name=self.name,
            type=self.type,
            updates=self.updates,
            spikes_TI=torch.cat(parts, dim=1).numpy(),
            silent=None if self.ever is None else int((~self.ever).sum()),
            always=None if self.always is None else int(self.always.sum()),
        )
