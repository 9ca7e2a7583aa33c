"""What is gathered of one layer while a network runs, and how it becomes counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from tser_cli.energy.counts import REAL, IntArray, Layer, LayerCounts, Operand
from tser_cli.energy.geometry import ConvShape


@dataclass
class Entry:
    """One call of a layer: `tally` is [3, steps, images] (see `tally.tally`), on the device.

    `step`: which time step the call computed, None where it computed all of them, or the first
    alone. `binary`: whether the whole tensor of the call was 0 and 1 alone, None where not looked
    at. `effective` and `total`: [steps, images], operations without those on weights of zero, and
    the sum of the inputs. `operands`: the non-zero elements of both factors of a matrix product,
    [2, steps, images].
    """

    batch: int
    tally: Tensor
    step: int | None = None
    binary: bool | None = None
    effective: Tensor | None = None
    total: Tensor | None = None
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
        """Return the facts, as a row of the table needs them."""
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
    return LayerCounts(
        layer=record.layer(),
        neuron_updates=neuron_updates,
        executed_T=steps[0][1].numpy(),
        nonzero_TI=nonzero_TI,
        events_TI=events_TI,
        value_TI=value_TI,
        calls=len(batches[0]),
        binary_TI=_gathered(batches, timesteps, _binary),
        effective_TI=_gathered(batches, timesteps, lambda entry: entry.effective),
        total_TI=_gathered(batches, timesteps, lambda entry: entry.total),
        operands=_operands(record, batches, timesteps),
    )


def _spread(entries: list[Entry], timesteps: int) -> tuple[Tensor, Tensor]:
    """Return the sum of a batch's calls, [3, T, images], and how often each step was computed,
    [T].
    """
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


def _binary(entry: Entry) -> Tensor | None:
    if entry.binary is None:
        return None
    return torch.full(entry.tally.shape[1:], int(entry.binary))


def _gathered(
    batches: dict[int, list[Entry]], timesteps: int, part: Callable[[Entry], Tensor | None]
) -> IntArray | None:
    """Return a part of all calls, [T, I], summed over the calls of a step; None where one has
    none.
    """
    gathered = []
    for _, entries in sorted(batches.items()):
        total = torch.zeros(timesteps, entries[0].tally.shape[-1], dtype=torch.int64)
        for entry in entries:
            found = part(entry)
            if found is None:
                return None
            total[_steps(entry)] += found.cpu()
        gathered.append(total)
    array: IntArray = torch.cat(gathered, dim=-1).numpy()
    return array


def _operands(
    record: Record, batches: dict[int, list[Entry]], timesteps: int
) -> tuple[Operand, ...]:
    if record.operand_kinds is None:
        return ()
    found = []
    for i, kind in enumerate(record.operand_kinds):
        nonzero_TI = _gathered(batches, timesteps, partial(_operand, i))
        assert nonzero_TI is not None, "every call of a product has its factors"
        found.append(Operand(kind, record.operand_sizes[i], nonzero_TI))
    return tuple(found)


def _operand(i: int, entry: Entry) -> Tensor | None:
    return None if entry.operands is None else entry.operands[i]
