"""What was counted: integers on the host, per layer, time step and image.

Below them what is gathered of a layer while a network runs, and how it becomes counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

REAL, SPIKES, SIGNED, SUMS = "real", "spikes", "signed", "sums"
INPUT_KINDS = (REAL, SPIKES, SUMS)
"""What the input of a layer can be declared as; "signed" spikes are only ever found.

Counts of events are sums.
"""
RANK = {"": 0, SPIKES: 1, SIGNED: 2, SUMS: 3, REAL: 4}
"""Kinds of inputs: each takes in those before it."""
CONV, LINEAR, MATMUL = "conv", "linear", "matmul"


class Fed(NamedTuple):
    """What a call was fed with; "" is zeros alone.

    `scale`: c where nothing but 0 and c came, -c where -c was among it; 0 where there is no such c,
    or where none is asked for. `least` and `most`: its range, where that was looked at.
    """

    kind: str
    scale: float = 0.0
    least: float = -inf
    most: float = inf


def mean_of(counted_TI: IntArray) -> float:
    """Return the mean per image of what was counted, over all steps."""
    return float(counted_TI.sum(axis=0).mean())


@dataclass(frozen=True)
class ConvShape:
    """What a convolution is, in one, two or three dimensions, apart from its input's size.

    `kernel`, `stride`, `dilation`, `padding` (zeros before and after) and `output_padding` have an
    element an axis. `transposed`: ConvTranspose, where an input feeds outputs i * stride + k *
    dilation - padding.
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerFacts:
    """The facts of a layer that do not depend on the data, for one image and one execution.

    `type`: conv, linear or matmul. `input_kind`: real, spikes (0 or 1), signed (-1, 0 or 1) or sums
    (integer sums of spikes). `scale`: c where the spikes are 0 and c, and c folds into the weights.
    `macs` and `macs_formula`: see `tser_cli.energy.tally.Geometry`.
    `weight_bytes` and `bias_bytes`: size of one stored weight and of one stored bias, 0 without
    bias. `parameters`: weights and biases. `fan_in`: the most inputs that one output sums, 0 where
    that is not known. `weight_bits`: those of a weight as it is computed with. `conv`: the shape of
    a convolution. `product`: of a matrix product [M, K] x [K, P], computed H times an image and
    step, H, M, K and P.
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
    fan_in: int = 0
    weight_bits: int = 32
    conv: ConvShape | None = None
    product: tuple[int, int, int, int] | None = None
    scale: float = 1.0

    @property
    def unfolded_kind(self) -> str:
        """Return what feeds the layer for those who fold no scale into its weights."""
        if self.scale == 1:
            return self.input_kind
        return SUMS if self.scale.is_integer() else REAL

    @property
    def accumulates(self) -> bool:
        """Return whether spikes drive the layer, and not real values, which cost MACs."""
        return self.input_kind != REAL

    @property
    def narrow(self) -> bool:
        """Return whether 16 bits hold every sum of a layer that adds integer weights.

        Wider weights count as 8 bits: a price of integers is asked for them as if they were.
        """
        largest = 2 ** (min(self.weight_bits, 8) - 1) - 1  # integers are symmetric around 0
        # How far a sum of spikes goes is not known, and a product of real values needs 32 anyway.
        bounded = self.input_kind in (SPIKES, SIGNED) and self.fan_in > 0
        return bounded and self.fan_in * largest < 2**15


@dataclass(frozen=True)
class Operand:
    """A factor of a matrix product: its kind, its elements an image and step, the non-zero ones."""

    kind: str
    size: int
    nonzero_TI: IntArray

    def rate(self, executions: int) -> float:
        """Return the share of non-zero elements over so many computations of an image."""
        return mean_of(self.nonzero_TI) / (self.size * executions)


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

    layer: LayerFacts
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
    def executions(self) -> int:
        """Return how often the layer is computed for one image."""
        return int(self.executed_T.sum())

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

    `neurons`: the layers of spiking neurons, in the order in which they first ran. `frames`: the
    input differs from step to step, as frames of events do: no layer is fed with one image alone.
    """

    timesteps: int
    images: int
    layers: tuple[LayerCounts, ...]
    neurons: tuple[NeuronCounts, ...] = ()
    frames: bool = False

    @property
    def stem(self) -> tuple[LayerCounts, ...]:
        """Return the layers that direct encoding feeds with the image itself."""
        if self.frames:
            return ()
        before = list(takewhile(lambda counts: not counts.layer.accumulates, self.layers))
        # A stem may have several layers, which then run once an image. Where all run at every
        # step, what is behind the first layer depends on time as far as anybody can tell.
        return tuple([counts for counts in before if counts.once] or before[:1])

    @property
    def stem_once(self) -> bool:
        """Return whether the program computes the stem once an image; with T = 1 it always does."""
        return self.timesteps == 1 or any(counts.once for counts in self.stem)


def joined(parts: Sequence[Counts], order_I: IntArray) -> Counts:
    """Return the counts of one network over the images of all parts, put into `order_I`.

    `order_I`: for each place of the result, its place among the images of the parts one after the
    other. The parts have the same layers and steps: they are those of several processes. Details
    are kept of a single part alone.
    """
    if len(parts) == 1 and (np.diff(order_I) == 1).all():
        return parts[0]
    layers = []
    for same in zip(*(part.layers for part in parts), strict=True):
        together = {
            name: np.concatenate([getattr(layer, name) for layer in same], axis=1)[:, order_I]
            for name in ("nonzero_TI", "events_TI", "value_TI")
        }
        layers.append(replace(same[0], **together))
    return replace(parts[0], images=sum(part.images for part in parts), layers=tuple(layers))


@dataclass(frozen=True)
class Axes:
    """Where the steps and images of a tensor are.

    `batch`: the axis of the images. `time`: an axis of the steps of its own, None without one.
    `folded`: the batch axis holds the steps too, time outermost. `inner`: how many elements of the
    batch axis belong to one image and step (heads, for instance).
    """

    batch: int
    time: int | None = None
    folded: bool = False
    inner: int = 1

    @property
    def all_steps(self) -> bool:
        """Return whether one tensor holds all time steps."""
        return self.folded or self.time is not None

    def steps(self, timesteps: int) -> int:
        """Return the steps that a tensor holds: T or 1."""
        return timesteps if self.all_steps else 1

    def fits(self, shape: Sequence[int], timesteps: int, images: int) -> bool:
        """Return whether a tensor of this shape holds so many images, and so many steps if any."""
        per_image = self.inner * (timesteps if self.folded else 1)
        if len(shape) <= max(self.batch, self.time or 0):
            return False
        right_time = self.time is None or shape[self.time] == timesteps
        return right_time and shape[self.batch] == per_image * images

    def rows(self, x: Tensor) -> Tensor:
        """`x` with its steps and images in front, [steps * images, inner, ...]; no copy."""
        if self.time is not None:
            x = x.movedim((self.time, self.batch), (0, 1)).flatten(0, 1)
        elif self.batch:
            x = x.movedim(self.batch, 0)
        return x.reshape(-1, self.inner, *x.shape[1:]) if self.inner > 1 else x


@dataclass(frozen=True)
class Place:
    """Where a call stands: in which batch, after and with how many images, at which step and axes.

    `step`: the time step that the call computes, None where it computes all of them, or the first
    alone. `axes`: of the input, or of both factors of a product; None for a weight.
    """

    batch: int
    before: int
    images: int
    timesteps: int
    step: int | None
    axes: tuple[Axes | None, ...]

    def at(self, steps: int) -> slice:
        """Return the time steps that a call of so many holds."""
        start = self.step or 0
        return slice(start, start + steps)


@dataclass
class Tally:
    """One call of a layer: `tally` is [3, steps, images] (see `tally.count`), on the device.

    `binary`: whether the whole tensor of the call was 0 and 1 alone. `effective` and `total`:
    [steps, images], operations without those on weights of zero, and the sum of the inputs.
    `operands`: the non-zero elements of both factors of a matrix product, [2, steps, images].
    """

    place: Place
    tally: Tensor
    binary: bool
    effective: Tensor | None = None
    total: Tensor | None = None
    operands: Tensor | None = None


class Kept:
    """Counts of all images so far on the device, [..., T, I], in memory that doubles when full.

    One tensor a call, kept between the maps that come and go, would hold fifty times its size: the
    maps' memory could not be joined again.
    """

    def __init__(self) -> None:
        self.held = torch.empty(0, 0)
        self.images = 0

    # in place, whether or not the caller is in inference mode
    @torch.inference_mode()
    def add(self, found: Tensor, place: Place) -> None:
        """Add the counts [..., steps, images] of a call at its steps and images."""
        self.images = max(self.images, place.before + place.images)
        if self.images > self.held.shape[-1]:
            grown = found.new_zeros(*found.shape[:-2], place.timesteps, 2 * self.images)
            if self.held.numel():
                grown[..., : self.held.shape[-1]] = self.held
            self.held = grown
        at = place.at(found.shape[-2])
        self.held[..., at, place.before : self.images] += found

    def array(self) -> IntArray:
        """Return the counts on the host, read in one go."""
        array: IntArray = self.held[..., : self.images].cpu().numpy()
        return array


@dataclass
class LayerRecord:
    """A layer while it is counted: the facts that its first call shows, and its counts so far.

    `fan_out_P`, on the device, and `shape`, of one row of its input, are there once it ran.
    `first`: the calls of the first batch. `fault`: the worst that is wrong with the data (see
    `tally.fault`), looked at when all has run.
    """

    facts: LayerFacts
    fan_out_P: Tensor = field(default_factory=lambda: torch.empty(0))
    shape: tuple[int, ...] = ()
    operand_kinds: tuple[str, ...] = ()
    operand_sizes: tuple[int, ...] = ()
    first: list[Tally] = field(default_factory=list)
    kept: dict[str, Kept] = field(default_factory=dict)
    fault: Tensor | None = None

    def add(self, call: Tally) -> None:
        """Add the counts of a call."""
        if call.place.batch == 0:
            self.first.append(call)
        binary = torch.full_like(call.tally[0], int(call.binary), dtype=torch.int16)
        parts = {**vars(call), "binary": binary}
        for name, found in parts.items():
            if name != "place" and found is not None:
                self.kept.setdefault(name, Kept()).add(found, call.place)

    def counts(self, kind: str, neuron_updates: int, scale: float = 1.0) -> LayerCounts:
        """Everything of the layer on the host: its calls put at their steps, batch after batch."""
        # All batches run alike, or the counter would have said so: the first one shows the steps.
        executed_T = np.zeros(self.first[0].place.timesteps, np.int64)
        for call in self.first:
            executed_T[call.place.at(call.tally.shape[1])] += 1
        found = {name: kept.array() for name, kept in self.kept.items()}
        nonzero_TI, events_TI, value_TI = found["tally"]
        operands = found.get("operands")
        if kind == REAL:
            # A layer that met real values in one batch is fed with real values.
            events_TI, value_TI = events_TI * 0, value_TI * 0
        elif scale != 1:
            value_TI = events_TI
        facts, kinds = replace(self.facts, input_kind=kind, scale=scale), self.operand_kinds
        if operands is not None:
            if kind == REAL or kinds.count(REAL) == 1:
                kinds = tuple(REAL if one == REAL else kind for one in kinds)
            driving = [i for i in range(2) if kinds[i] != REAL] or [0, 1]
            nonzero_TI = operands[driving].sum(0)
            facts = replace(facts, neurons_in=sum(self.operand_sizes[i] for i in driving))
        return LayerCounts(
            layer=facts,
            neuron_updates=neuron_updates,
            executed_T=executed_T,
            nonzero_TI=nonzero_TI,
            events_TI=events_TI,
            value_TI=value_TI,
            calls=len(self.first),
            binary_TI=found["binary"],
            effective_TI=found.get("effective"),
            total_TI=found.get("total"),
            operands=()
            if operands is None
            else tuple(map(Operand, kinds, self.operand_sizes, operands)),
        )


@dataclass
class NeuronRecord:
    """A layer of neurons while it is counted: its calls' spikes, and which neurons fired.

    `ever` and `always`: of each neuron, whether it fired at all, and whether at every step of
    every image. Only updates are counted where no details are kept.
    """

    name: str
    type: str
    updates: int = 0
    sent: Kept = field(default_factory=Kept)
    ever: Tensor | None = None
    always: Tensor | None = None

    def add(self, spikes: Tensor, place: Place, detailed: bool) -> None:
        (axes,) = place.axes
        assert axes is not None, "neurons hold something of each image"
        steps = axes.steps(place.timesteps)
        self.updates = spikes.numel() // (steps * place.images)
        if not detailed:
            return
        fired = axes.rows(spikes.detach()).reshape(steps, place.images, -1).ne(0).float()
        # Sums alone are kept: the spikes of a test set would not fit the memory.
        self.sent.add(fired.sum(-1).long(), place)
        ever, always = fired.amax((0, 1)).bool(), fired.amin((0, 1)).bool()
        self.ever = ever if self.ever is None else self.ever | ever
        self.always = always if self.always is None else self.always & always

    def counts(self, images: int) -> NeuronCounts:
        """Return the spikes of all batches, [T, I], and the neurons that never or always fired."""
        if self.ever is None or self.always is None:
            return NeuronCounts(self.name, self.type, self.updates)
        spikes_TI = self.sent.array()
        unseen = images - spikes_TI.shape[1]  # of batches at the end in which they were not called
        return NeuronCounts(
            name=self.name,
            type=self.type,
            updates=self.updates,
            spikes_TI=np.pad(spikes_TI, ((0, 0), (0, unseen))),
            silent=int((~self.ever).sum()),
            always=int(self.always.sum()),
        )
