"""What was counted: plain integers on the host, per layer, time step and image.

What is gathered of one layer while a network runs, and how it becomes counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tser_cli.energy.geometry import ConvShape

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

REAL, SPIKES, SIGNED, SUMS = "real", "spikes", "signed", "sums"
INPUT_KINDS = (REAL, SPIKES, SUMS)
"""What the input of a layer can be declared as; "signed" spikes are only ever found."""
CONV, LINEAR, MATMUL = "conv", "linear", "matmul"


@dataclass(frozen=True)
class Layer:
    """The facts of a layer that do not depend on the data, for one image and one execution.

    `type`: conv, linear or matmul. `input_kind`: real, spikes (0 or 1), signed (-1, 0 or 1) or sums
    (integer sums of spikes). `macs` and `macs_formula`: see `tser_cli.energy.geometry.Geometry`.
    `weight_bytes` and `bias_bytes`: size of one stored weight and of one stored bias, 0 without
    bias. `parameters`: weights and biases. `conv`: the shape of a convolution. `product`: of a
    matrix product [M, K] x [K, P], computed H times an image and step, H, M, K and P.
    """

    name: str
    type: str
    input_kind: str
    neurons_in: int
    outputs: int
    macs: int
    macs_formula: int
    weight_bytes: int
    bias_bytes: int
    parameters: int = 0
    conv: ConvShape | None = None
    product: tuple[int, int, int, int] | None = None

    @property
    def accumulates(self) -> bool:
        """Return whether spikes drive the layer (accumulates), and not real values (MACs)."""
        return self.input_kind != REAL


@dataclass(frozen=True)
class Operand:
    """A factor of a matrix product: its kind, its elements an image and step, the non-zero ones."""

    kind: str
    size: int
    nonzero_TI: IntArray


@dataclass(frozen=True)
class LayerCounts:
    """The counts of a layer over a data set of I images and T steps.

    `executed_T`: 1 at the steps at which the layer was computed; a layer that is computed once an
    image has its 1 at the first step. `nonzero_TI`: non-zero inputs. `events_TI`: non-zero inputs
    x fan-out. `value_TI`: sum of inputs x fan-out, so that a 2 costs two additions; equal to
    `events_TI` for spikes; both are 0 for real inputs, whose cost is `macs`. `neuron_updates`:
    updates per image and step of the spiking neurons that follow the layer.

    What only some conventions need, None where it was not gathered: `calls`, how often the layer
    is called for a batch; `binary_TI`, 1 where the whole batch's call met nothing but 0 and 1;
    `effective_TI`, non-zero inputs x the non-zero weights that read them, for real inputs too;
    `total_TI`, the sum of the inputs' magnitudes, rounded; `operands`, both factors of a product.
    """

    layer: Layer
    neuron_updates: int
    executed_T: IntArray
    nonzero_TI: IntArray
    events_TI: IntArray
    value_TI: IntArray
    calls: int = 1
    binary_TI: IntArray | None = None
    effective_TI: IntArray | None = None
    total_TI: IntArray | None = None
    operands: tuple[Operand, ...] = ()

    @property
    def once(self) -> bool:
        """Return whether the program computes the layer once an image and not at every step."""
        return bool((self.executed_T == 0).any())

    @property
    def step_macs(self) -> IntArray:
        """Multiply-accumulates per image at each step, [T]: none where spikes drive the layer."""
        return self.executed_T * (0 if self.layer.accumulates else self.layer.macs)


@dataclass(frozen=True)
class NeuronCounts:
    """A layer of spiking neurons, with the name of its class and its updates an image and step.

    Looked at on request, else None: the spikes it sent, [T, I]; how many neurons were `silent`
    throughout, and how many fired at every step of every image (`always`).
    """

    name: str
    type: str
    updates: int
    spikes_TI: IntArray | None = None
    silent: int | None = None
    always: int | None = None


@dataclass(frozen=True)
class Counts:
    """The counts of a network over a data set; `layers` are in the order in which they ran.

    `neurons`: gathered for networks from elsewhere only.
    """

    timesteps: int
    images: int
    layers: tuple[LayerCounts, ...]
    neurons: tuple[NeuronCounts, ...] = ()

    @property
    def stem(self) -> tuple[LayerCounts, ...]:
        """Return the layers that direct encoding feeds with the image itself.

        Of those before any spike those that were computed once an image; else the first layer,
        where its input is real.
        """
        before = list(takewhile(lambda counts: not counts.layer.accumulates, self.layers))
        return tuple([counts for counts in before if counts.once] or before[:1])

    @property
    def stem_once(self) -> bool:
        """Return whether the program computes the stem once an image (with T = 1 that is the
        same).
        """
        return self.timesteps == 1 or any(counts.once for counts in self.stem)


def joined(parts: Sequence[Counts], order_I: IntArray) -> Counts:
    """Return the counts of one network over the images of all parts, put into `order_I`.

    `order_I`: for each place of the result, its place among the images of the parts one after the
    other. The parts have the same layers and steps: they are those of several processes.
    """
    return replace(
        parts[0],
        images=sum(part.images for part in parts),
        layers=tuple(
            _joined_layer(layers, order_I)
            for layers in zip(*(part.layers for part in parts), strict=True)
        ),
    )


def _joined_layer(parts: Sequence[LayerCounts], order_I: IntArray) -> LayerCounts:
    def together(name: str) -> IntArray:
        return np.concatenate([getattr(part, name) for part in parts], axis=1)[:, order_I]

    return replace(
        parts[0],
        nonzero_TI=together("nonzero_TI"),
        events_TI=together("events_TI"),
        value_TI=together("value_TI"),
    )


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
