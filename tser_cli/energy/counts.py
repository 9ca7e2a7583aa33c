"""What was counted: plain integers on the host, per layer, time step and image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

REAL, SPIKES, SUMS = "real", "spikes", "sums"
INPUT_KINDS = (REAL, SPIKES, SUMS)


@dataclass(frozen=True)
class Layer:
    """The facts of a layer that do not depend on the data, for one image and one execution.

    `type`: conv or linear. `input_kind`: real, spikes (0 or 1) or sums (integer sums of spikes).
    `macs` and `macs_formula`: see `tser_cli.energy.geometry.Geometry`. `weight_bytes` and
    `bias_bytes`: size of one stored weight and of one stored bias, 0 without bias.
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

    @property
    def accumulates(self) -> bool:
        """Whether spikes drive the layer (accumulates), and not real values (MACs)."""
        return self.input_kind != REAL


@dataclass(frozen=True)
class LayerCounts:
    """The counts of a layer over a data set of I images and T steps.

    `executed_T`: 1 at the steps at which the layer was computed; a layer that is computed once an
    image has its 1 at the first step. `nonzero_TI`: non-zero inputs. `events_TI`: non-zero inputs
    x fan-out. `value_TI`: sum of inputs x fan-out, so that a 2 costs two additions; equal to
    `events_TI` for spikes; both are 0 for real inputs, whose cost is `macs`. `neuron_updates`:
    updates per image and step of the spiking neurons that follow the layer.
    """

    layer: Layer
    neuron_updates: int
    executed_T: IntArray
    nonzero_TI: IntArray
    events_TI: IntArray
    value_TI: IntArray

    @property
    def once(self) -> bool:
        """Whether the program computes the layer once an image and not at every step."""
        return int(self.executed_T.sum()) < len(self.executed_T)

    @property
    def step_macs(self) -> IntArray:
        """Multiply-accumulates per image at each step, [T]: none where spikes drive the layer."""
        return self.executed_T * (0 if self.layer.accumulates else self.layer.macs)


@dataclass(frozen=True)
class Counts:
    """The counts of a network over a data set; `layers` are in the order in which they ran."""

    timesteps: int
    images: int
    layers: tuple[LayerCounts, ...]

    @property
    def stem(self) -> tuple[LayerCounts, ...]:
        """The layers that direct encoding feeds with the image itself.

        Those that were computed once an image; else the first layer, where its input is real.
        """
        once = [c for c in self.layers if c.once and not c.layer.accumulates]
        first = [c for c in self.layers[:1] if not c.layer.accumulates]
        return tuple(once or first)

    @property
    def stem_once(self) -> bool:
        """Whether the program computes the stem once an image (with T = 1 that is the same)."""
        return self.timesteps == 1 or any(counts.once for counts in self.layers)


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
