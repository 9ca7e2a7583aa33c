"""What is gathered of one layer while a network runs, and how it becomes counts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tser_cli.energy.counts import REAL, Layer, LayerCounts, Operand
from tser_cli.energy.geometry import ConvShape


@dataclass
class Entry:
    """One call of a layer: `tally` is [3, steps, images] (see `tally.tally`), on the device.

    `step`: which time step the call computed, None where it computed all of them, or the first
    alone. `binary`: whether the whole tensor of the call was 0 and 1 alone, None where not looked
    at. `effective`: [steps, images], operations without those on weights of zero. `operands`: the
    non-zero elements of both factors of a matrix product, [2, steps, images].
    """

    batch: int
    tally: Tensor
    step: int | None = None
    binary: bool | None = None
    effective: Tensor | None = None
    operands: Tensor | None = None


@dataclass
class Record:
    """The facts of a layer that its first call shows, and its calls so far."""

    name: str
    type: str
    kind: str
    neurons_in: int = 0
    outputs: int = 0
    macs: int = 0
    macs_formula: int = 0
    weight_bytes: int = 0
    bias_bytes: int = 0
    parameters: int = 0
    conv: ConvShape | None = None
    product: tuple[int, int, int, int] | None = None
    operand_kinds: tuple[str, str] | None = None
    operand_sizes: tuple[int, int] = (0, 0)
    entries: list[Entry] = field(default_factory=list)

    def layer(self) -> Layer:
        """The facts, as a row of the table needs them."""
        return Layer(
            name=self.name,
            type=self.type,
            input_kind=self.kind,
            neurons_in=self.neurons_in,
            outputs=self.outputs,
            macs=self.macs,
            macs_formula=self.macs_formula,
            weight_bytes=self.weight_bytes,
            bias_bytes=self.bias_bytes,
            parameters=self.parameters,
            conv=self.conv,
            product=self.product,
        )


def layer_counts(record: Record, timesteps: int, neuron_updates: int) -> LayerCounts:
    """Everything of a layer on the host: its calls put at their steps, batch after batch."""
    batches: dict[int, list[Entry]] = {}
    for entry in record.entries:
        batches.setdefault(entry.batch, []).append(entry)
    steps = [_spread(entries, timesteps) for _, entries in sorted(batches.items())]
    counted = torch.cat([tally for tally, _ in steps], dim=-1).cpu()
    nonzero_TI, events_TI, value_TI = counted.numpy()
    if record.kind == REAL:
        # A layer that met real values in one batch is fed with real values.
        events_TI, value_TI = events_TI * 0, value_TI * 0
    binary_T, effective_TI = _flags(batches, timesteps), _extra(batches, timesteps)
    return LayerCounts(
        layer=record.layer(),
        neuron_updates=neuron_updates,
        executed_T=steps[0][1].numpy(),
        nonzero_TI=nonzero_TI,
        events_TI=events_TI,
        value_TI=value_TI,
        binary_T=binary_T.numpy() if binary_T is not None else None,
        effective_TI=effective_TI.cpu().numpy() if effective_TI is not None else None,
        operands=_operands(record, batches, timesteps),
    )


def _spread(entries: list[Entry], timesteps: int) -> tuple[Tensor, Tensor]:
    """The sum of a batch's calls, [3, T, images], and how often each step was computed, [T]."""
    total = entries[0].tally.new_zeros(3, timesteps, entries[0].tally.shape[-1])
    executed_T = torch.zeros(timesteps, dtype=torch.int64)
    for entry in entries:
        at = _steps(entry)
        total[:, at] += entry.tally
        executed_T[at] += 1
    return total, executed_T


def _steps(entry: Entry) -> slice:
    start = entry.step or 0
    return slice(start, start + entry.tally.shape[1])


def _flags(batches: dict[int, list[Entry]], timesteps: int) -> Tensor | None:
    """The share of images whose call was binary as a whole, at each step, [T]."""
    if any(entry.binary is None for entries in batches.values() for entry in entries):
        return None
    binary_T, images_T = torch.zeros(timesteps), torch.zeros(timesteps)
    for entry in (entry for entries in batches.values() for entry in entries):
        images_T[_steps(entry)] += entry.tally.shape[-1]
        binary_T[_steps(entry)] += entry.tally.shape[-1] * bool(entry.binary)
    return binary_T / images_T.clamp(min=1)


def _extra(batches: dict[int, list[Entry]], timesteps: int) -> Tensor | None:
    parts = []
    for _, entries in sorted(batches.items()):
        images = entries[0].tally.shape[-1]
        total = torch.zeros(timesteps, images, dtype=torch.int64)
        for entry in entries:
            if entry.effective is None:
                return None
            total[_steps(entry)] += entry.effective.cpu()
        parts.append(total)
    return torch.cat(parts, dim=-1)


def _operands(
    record: Record, batches: dict[int, list[Entry]], timesteps: int
) -> tuple[Operand, ...]:
    if record.operand_kinds is None:
        return ()
    parts = []
    for _, entries in sorted(batches.items()):
        total = torch.zeros(2, timesteps, entries[0].tally.shape[-1], dtype=torch.int64)
        for entry in entries:
            assert entry.operands is not None
            total[:, _steps(entry)] += entry.operands.cpu()
        parts.append(total)
    nonzero = torch.cat(parts, dim=-1).numpy()
    kinds, sizes = record.operand_kinds, record.operand_sizes
    return tuple(Operand(kinds[i], sizes[i], nonzero[i]) for i in range(2))
