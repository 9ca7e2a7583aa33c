"""Integer potentials: the neurons of a student with integer weights, in 32-bit integers.

The unit of a layer's potential is threshold / 2^bits. A source of its input gives integers: the
sums of a layer with integer weights, or spikes, times a multiplier that is rounded once, when the
file is written. What gives floats, as the layer that reads the image, is rounded to the unit at
each step, to the nearest integer, halves to the even one. Then, with `bias` the biases of all
sources and >> the arithmetic shift, which rounds down:

    x = sum over sources of multiplier * integers + bias
    h = rest + ((v - rest) >> shift) + x
    s = 1 where h >= 2^bits, else 0
    v = rest where s = 1, else h          (soft reset: h - 2^bits * s)

Each layer has as many bits as its largest possible potential leaves room for. These are not the
student's own numbers: what its spikes become is measured, and said in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tser_cli.errors import ExportError
from tser_cli.export.graph import INPUT, Conv, Flatten, Graph, Linear, Neuron, Node, Pool

Integers: TypeAlias = NDArray[np.int64]
MOST_BITS = 24  # as many as a float32 input has
FEWEST_BITS = 8
LARGEST = 0.99 * 2**31
LARGEST_SUM = 255  # of spikes, as unsigned integers of 8 bits


@dataclass(frozen=True, eq=False)
class Term:
    """One source of a layer's input: `multiplier`, one for all or one a channel, of its integers.

    `factor` is not 0 where the source gives floats: round(factor * float) is the input then.
    """

    source: str
    multiplier: Integers
    factor: float = 0.0


@dataclass(frozen=True, eq=False)
class FixedNeuron:
    """The integers of a layer of neurons; see the module. `unit` is what 1 stands for."""

    bits: int
    unit: float
    shift: int
    rest: int
    soft: bool
    terms: tuple[Term, ...]
    bias: Integers

    @property
    def exact(self) -> bool:
        """Return whether equal spikes give equal potentials, in any program: it reads no floats."""
        return not any(term.factor for term in self.terms)

    @property
    def threshold(self) -> int:
        """Return the potential at which it fires."""
        return 1 << self.bits

    @property
    def equations(self) -> str:
        """Return one time step, exactly, as `Neuron.equations`."""
        decayed = (
            f"{self.rest} + (v - {self.rest} >> {self.shift})"
            if self.rest
            else (f"(v >> {self.shift})")
        )
        after = f"h - {self.threshold} * s" if self.soft else f"{self.rest} where s = 1, else h"
        return (
            f"32-bit integers in units of {self.unit!r}: v = {self.rest} before the first step; "
            f"x = the sum over its inputs of multiplier * integers, + bias; h = {decayed} + x, "
            f"where >> rounds down; s = 1 where h >= {self.threshold}, else 0; v = {after}"
        )


@dataclass(frozen=True, eq=False)
class FixedGraph:
    """A graph with the integers of each layer of neurons.

    `whole`: nodes whose outputs are spikes or sums of them. `accumulators`: layers whose outputs
    are the sums of integer weights, read by neurons alone.
    """

    graph: Graph
    neurons: Mapping[str, FixedNeuron]
    whole: frozenset[str]
    accumulators: frozenset[str]


def fixed_point(graph: Graph) -> FixedGraph:
    """Return the integers of `graph`. Raises ExportError, naming what has none."""
    if not any(node.quantised for node in graph.weighted):
        raise ExportError(
            "integer potentials need integer weights, and those of this student are floating "
            "point: tser quantize --run RUN makes a run with integer ones"
        )
    whole = _whole(graph)
    accumulators = _accumulators(graph, whole)
    largest = _largest(graph)
    for node in graph.weighted:
        if node.name in accumulators and sum(map(largest.__getitem__, node.inputs)) > LARGEST_SUM:
            raise ExportError(f"the layer {node.name} reads sums of more than {LARGEST_SUM} spikes")
    neurons = {
        node.name: _fixed(node, graph, whole, accumulators, largest) for node in graph.neurons
    }
    return FixedGraph(graph, neurons, whole, accumulators)


def _whole(graph: Graph) -> frozenset[str]:
    found: set[str] = set()
    for node in graph.nodes:
        keeps = isinstance(node, Flatten) or (isinstance(node, Pool) and node.largest)
        if isinstance(node, Neuron) or (keeps and found.issuperset(node.inputs)):
            found.add(node.name)
    return frozenset(found)


def _accumulators(graph: Graph, whole: frozenset[str]) -> frozenset[str]:
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for source in node.inputs:
            readers.setdefault(source, []).append(node)
    return frozenset(
        node.name
        for node in graph.weighted
        if node.quantised is not None
        and whole.issuperset(node.inputs)
        and node.name != graph.output
        and all(isinstance(reader, Neuron) for reader in readers[node.name])
    )


def _largest(graph: Graph) -> dict[str, float]:
    """Return a bound of each node's magnitude, for any image of pixels 0..255."""
    facts = graph.facts
    extremes = [(p - m) / s for m, s in zip(facts.mean, facts.std, strict=True) for p in (0.0, 1.0)]
    found = {INPUT: max(map(abs, extremes))}
    for node in graph.nodes:
        read = sum(found[source] for source in node.inputs)
        if isinstance(node, Conv | Linear):
            sums_O = np.abs(node.weight).reshape(len(node.weight), -1).sum(1)
            found[node.name] = float((sums_O * read + np.abs(node.bias_O)).max())
        else:
            found[node.name] = 1.0 if isinstance(node, Neuron) else read
    return found


def _fixed(
    node: Neuron,
    graph: Graph,
    whole: frozenset[str],
    accumulators: frozenset[str],
    largest: Mapping[str, float],
) -> FixedNeuron:
    shift = _shift(node)
    inputs = node.gain * sum(largest[source] for source in node.inputs) + abs(node.rest)
    steps = min(graph.facts.timesteps, 2.0 if shift else math.inf)
    bits = min(MOST_BITS, math.floor(math.log2(LARGEST * node.threshold / (inputs * steps))))
    if bits < FEWEST_BITS:
        raise ExportError(
            f"the potentials of {node.name} reach {inputs * steps / node.threshold:.3g} times the "
            "threshold, too much for integers of 32 bits: export float potentials"
        )
    unit = node.threshold / (1 << bits)
    by_name = {layer.name: layer for layer in graph.weighted}
    terms, bias = [], np.zeros(1)
    for source in node.inputs:
        if source in accumulators:
            layer = by_name[source]
            assert layer.quantised is not None, "it has integer weights"
            terms.append(Term(source, _rounded(node.gain * layer.quantised.scale_O / unit)))
            bias = bias + node.gain * layer.bias_O / unit
        elif source in whole:
            terms.append(Term(source, _rounded(np.array([node.gain / unit]))))
        else:
            terms.append(Term(source, np.zeros(0, np.int64), node.gain / unit))
    rest = round(node.rest / unit)
    return FixedNeuron(bits, unit, shift, rest, node.reset is None, tuple(terms), _rounded(bias))


def _rounded(values: NDArray[np.float64]) -> Integers:
    whole: Integers = np.rint(values).astype(np.int64)
    return whole


def _shift(node: Neuron) -> int:
    """Return how far a step shifts the potential. Raises ExportError where no shift does it."""
    shift = -math.log2(node.leak) if node.leak > 0.0 else -1.0
    if shift < 0.0 or not shift.is_integer():
        raise ExportError(
            f"the neurons {node.name} keep {node.leak:.4g} of their potential at each step; "
            "a shift of integers keeps all of it (neuron.name=if) or a half (neuron.tau=2)"
        )
    return int(shift)
