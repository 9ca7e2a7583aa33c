"""A folded network as a list of plain nodes, from which every file format is written.

There is no node for an addition: a node with several inputs reads their sum, as in NIR. Nodes stand
in the order in which they are computed. Constants are float64, so that folding a norm rounds at
2^-53; a format that wants float32 rounds once more, when it is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = tuple[int, int]
INPUT = "input"


@dataclass(frozen=True, eq=False)
class Quantised:
    """Integer weights behind a float weight: weight = scale_O * integers_O..., exactly."""

    integers: NDArray[np.int8]
    scale_O: Array
    bits: int


@dataclass(frozen=True, eq=False)
class Node:
    """Base: a name, the names of the nodes whose sum it reads, the shape of its output (no N)."""

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """A 2-D convolution with its norm folded in: weight [O, I, H, W], bias [O]."""

    weight: Array
    bias_O: Array
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    quantised: Quantised | None = None


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """weight [O, I], bias [O]."""

    weight: Array
    bias_O: Array
    quantised: Quantised | None = None


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """Average pooling, or max pooling where `largest`; padding counts as 0 in no average."""

    largest: bool
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """[C, H, W] -> [C * H * W]."""


@dataclass(frozen=True, eq=False)
class Neuron(Node):
    """Spiking neurons; see `equations`. `reset` None is the soft reset.

    Potentials start at `rest`. `kind` is the name of the setting that made it: lif, if or plif.
    """

    kind: str
    leak: float
    gain: float
    threshold: float
    reset: float | None

    @property
    def rest(self) -> float:
        """Return where the membrane potential starts, and what it decays to."""
        return 0.0 if self.reset is None else self.reset

    @property
    def equations(self) -> str:
        """Return one time step, exactly; `v` is the membrane potential, `x` the input, `s` the
        spikes.
        """
        rest, threshold = self.rest, self.threshold
        decayed = f"{self.leak!r} * v" if not rest else f"{rest!r} + {self.leak!r} * (v - {rest!r})"
        after = f"h - {threshold!r} * s" if self.reset is None else f"{rest!r} where s = 1, else h"
        return (
            f"v = {rest!r} before the first step; h = {decayed} + {self.gain!r} * x; "
            f"s = 1 where h >= {threshold!r}, else 0; v = {after}"
        )


@dataclass(frozen=True)
class Facts:
    """What a file says of itself besides its graph.

    `mean` and `std`, one a channel, are of pixels scaled to 0..1: the graph takes
    (pixels / 255 - mean) / std. `shorter`: what an image's shorter side is scaled to before the
    central crop, 0 for 256 / 224 of the input's. `more`: further facts, such as the run's name.
    """

    model: str
    dataset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    timesteps: int
    shorter: int = 0
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Graph:
    """A folded spiking network. `input_shape` is (C, H, W); the last node gives the logits."""

    input_shape: tuple[int, int, int]
    nodes: tuple[Node, ...]
    facts: Facts

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """Return the spiking layers, first to last."""
        return tuple(node for node in self.nodes if isinstance(node, Neuron))

    @property
    def weighted(self) -> tuple[Conv | Linear, ...]:
        """Return the layers with weights, first to last."""
        return tuple(node for node in self.nodes if isinstance(node, Conv | Linear))

    @property
    def output(self) -> str:
        """Return the name of the node that gives the logits."""
        return self.nodes[-1].name

    @property
    def edges(self) -> list[tuple[str, str]]:
        """(from, to) for every input of every node."""
        return [(source, node.name) for node in self.nodes for source in node.inputs]


def metadata(graph: Graph) -> dict[str, str]:
    """Return the facts of `graph` as strings, for formats that keep key and value."""
    facts = graph.facts
    equations = {node.name: node.equations for node in graph.neurons}
    values = {
        "model": facts.model,
        "dataset": facts.dataset,
        "input": "normalised images [N, C, H, W], the same at every time step",
        "input_shape": json.dumps(list(graph.input_shape)),
        "mean": json.dumps(list(facts.mean)),
        "std": json.dumps(list(facts.std)),
        "shorter_side": str(facts.shorter),
        "normalisation": "(pixel / 255 - mean) / std, by channel",
        "classes": json.dumps(list(facts.classes)),
        "timesteps": str(facts.timesteps),
        "output": "logits; the prediction after t steps is the argmax of the mean of steps 1..t",
        "neuron_equations": json.dumps(equations),
        "first_potentials": json.dumps({node.name: node.rest for node in graph.neurons}),
        "weights": _weights(graph),
        "weight_bits": json.dumps(_bits(graph)),
    }
    return {**values, **{key: str(value) for key, value in facts.more.items()}}


def _weights(graph: Graph) -> str:
    if not _bits(graph):
        return "floating point, batch norms folded in"
    return (
        "8-bit integers (4-bit ones included) times a scale per output channel, batch norms folded "
        "in; the sums of a layer are exact integers, and sum times scale plus bias, the membrane "
        "potentials and the thresholds are floating point, in the units of the float network"
    )


def _bits(graph: Graph) -> dict[str, int]:
    """Return the bits of each layer with integer weights."""
    return {node.name: node.quantised.bits for node in graph.weighted if node.quantised}
