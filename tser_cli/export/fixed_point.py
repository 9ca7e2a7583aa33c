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
student's own numbers: what its spikes become is measured, and said in the file. In ONNX, layers
that read spikes are ConvInteger and MatMulInteger; what reads the image, an average or gives the
logits stays in float32.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tser_cli.base.errors import ExportError
from tser_cli.export import graph as graphs
from tser_cli.export.formats import Writer, conv_sizes, pool_sizes
from tser_cli.export.graph import (
    INPUT,
    Conv,
    Flatten,
    Graph,
    Linear,
    Neuron,
    Node,
    Operation,
    Pool,
)
from tser_cli.export.verify import Recording

Integers: TypeAlias = NDArray[np.int64]
Values: TypeAlias = dict[str, Tensor]
MOST_BITS = 24  # as many as a float32 input has
FEWEST_BITS = 8
LARGEST = 0.99 * 2**31  # the rest is for the rounding of multipliers and biases
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
        decayed = f"(v >> {self.shift})"
        if self.rest:
            decayed = f"{self.rest} + (v - {self.rest} >> {self.shift})"
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
            "point: tser quantize RUN makes a run with integer ones"
        )
    for node in graph.nodes:
        if isinstance(node, Operation):
            raise ExportError(
                f"integer potentials are for networks of layers, and {graph.facts.model} has "
                f"products or sums between them ({node.name}): export float potentials"
            )
    whole: set[str] = set()
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        # spikes stay spikes in another order, and so does the largest of some
        keeps = isinstance(node, Flatten) or (isinstance(node, Pool) and node.largest)
        if isinstance(node, Neuron) or (keeps and whole.issuperset(node.inputs)):
            whole.add(node.name)
        for source in node.inputs:
            readers[source].append(node)
    accumulators = frozenset(
        node.name
        for node in graph.weighted
        if node.quantised is not None
        and whole.issuperset(node.inputs)
        and node.name != graph.output
        # only neurons undo the scale: to anything else bare sums would be wrong numbers
        and all(isinstance(reader, Neuron) for reader in readers[node.name])
    )
    largest = _largest(graph)
    for node in graph.weighted:
        if node.name in accumulators and sum(map(largest.__getitem__, node.inputs)) > LARGEST_SUM:
            raise ExportError(f"the layer {node.name} reads sums of more than {LARGEST_SUM} spikes")
    kept = FixedGraph(graph, {}, frozenset(whole), accumulators)
    return replace(kept, neurons={node.name: _fixed(node, kept, largest) for node in graph.neurons})


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


def _fixed(node: Neuron, fixed: FixedGraph, largest: Mapping[str, float]) -> FixedNeuron:
    shift = -math.log2(node.leak) if node.leak > 0.0 else -1.0
    if shift < 0.0 or not shift.is_integer():
        raise ExportError(
            f"the neurons {node.name} keep {node.leak:.4g} of their potential at each step; "
            "a shift of integers keeps all of it (neuron.name=if) or a half (neuron.tau=2)"
        )
    inputs = node.gain * sum(largest[source] for source in node.inputs) + abs(node.rest)
    # a potential that halves at each step stays below twice its largest input
    steps = min(fixed.graph.facts.timesteps, 2.0 if shift else math.inf)
    bits = min(MOST_BITS, math.floor(math.log2(LARGEST * node.threshold / (inputs * steps))))
    if bits < FEWEST_BITS:
        raise ExportError(
            f"the potentials of {node.name} reach {inputs * steps / node.threshold:.3g} times the "
            "threshold, too much for integers of 32 bits: export float potentials"
        )
    # a power of two of it: the threshold itself is then a whole number, and compared exactly
    unit = node.threshold / (1 << bits)
    by_name = {layer.name: layer for layer in fixed.graph.weighted}
    terms, bias = [], np.zeros(1)
    for source in node.inputs:
        if source in fixed.accumulators:
            layer = by_name[source]
            assert layer.quantised is not None, "it has integer weights"
            terms.append(Term(source, _rounded(node.gain * layer.quantised.scale_O / unit)))
            bias = bias + node.gain * layer.bias_O / unit
        elif source in fixed.whole:
            terms.append(Term(source, _rounded(np.array([node.gain / unit]))))
        else:
            # floats: rounded to the unit at each step, when the file runs
            terms.append(Term(source, np.zeros(0, np.int64), node.gain / unit))
    rest = round(node.rest / unit)
    soft = node.reset is None
    return FixedNeuron(bits, unit, int(shift), rest, soft, tuple(terms), _rounded(bias))


def _rounded(values: NDArray[np.float64]) -> Integers:
    whole: Integers = np.rint(values).astype(np.int64)
    return whole


@dataclass(frozen=True)
class Change:
    """How integer potentials differ from the student's own, over all layers, steps and images.

    `parted`: images in which any spike differs. `logits_difference`: the largest.
    """

    values: int
    differing: int
    images: int
    parted: int
    predictions_differing: int
    logits_difference: float

    def sentence(self) -> str:
        """Return it in words."""
        return (
            f"against the student's own potentials, {self.differing:,} of {self.values:,} spikes "
            f"and silences differ on {self.images} test images, in {self.parted} of them; "
            f"{self.predictions_differing} answers differ, logits by {self.logits_difference:.2g} "
            "at most"
        )


def change(truth: Recording, fixed: Recording) -> Change:
    """Compare the run of a student with the run of its integers."""
    differing, parted_N = 0, np.zeros(truth.images, dtype=bool)
    for name, spikes in truth.spikes.items():
        wrong = (spikes != fixed.spikes[name]).reshape(len(spikes), truth.images, -1)
        differing += int(wrong.sum())
        parted_N |= wrong.any((0, 2))
    answers = [logits_TNK.mean(0).argmax(-1) for logits_TNK in (truth.logits_TNK, fixed.logits_TNK)]
    return Change(
        values=sum(spikes.size for spikes in truth.spikes.values()),
        differing=differing,
        images=truth.images,
        parted=int(parted_N.sum()),
        predictions_differing=int((answers[0] != answers[1]).sum()),
        logits_difference=float(np.abs(truth.logits_TNK - fixed.logits_TNK).max()),
    )


@torch.no_grad()
def run_fixed(fixed: FixedGraph, images_NCHW: Tensor) -> Recording:
    """Run the integers over the graph's number of steps.

    `distance` is in units of the threshold, and infinite where neurons read integers alone: no
    rounding may decide there. Integers are int64 here, and 32 bits must suffice: AssertionError
    otherwise. What reads the image is computed in float32, as in the file.
    """
    graph = fixed.graph
    potentials: Values = {}
    spikes: dict[str, list[NDArray[np.bool_]]] = defaultdict(list)
    distance: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    logits = []
    images = images_NCHW.float().cpu()
    for step in range(graph.facts.timesteps):
        values: Values = {INPUT: images[:, step] if images.dim() == 5 else images}
        for node in graph.nodes:
            if node.name not in fixed.neurons:
                values[node.name] = _layer(node, fixed, values)
                continue
            neuron = fixed.neurons[node.name]
            charged = _charge(neuron, values, potentials.get(node.name))
            fired = charged >= neuron.threshold
            soft = charged - neuron.threshold * fired
            potentials[node.name] = soft if neuron.soft else charged.where(~fired, neuron.rest)
            values[node.name] = fired.long()
            spikes[node.name].append(fired.numpy())
            apart = (charged - neuron.threshold).abs().double() / neuron.threshold
            apart += math.inf if neuron.exact else 0.0
            distance[node.name].append(apart.float().numpy())
        logits.append(values[graph.output].double().numpy())
    return Recording(
        np.stack(logits),
        {name: np.stack(steps) for name, steps in spikes.items()},
        {name: np.stack(steps) for name, steps in distance.items()},
    )


def _charge(neuron: FixedNeuron, values: Values, before: Tensor | None) -> Tensor:
    """Return h, as int64."""
    x: Tensor | None = None
    for term in neuron.terms:
        value = values[term.source]
        if term.factor:
            # in float32, as the file computes it: in float64 another integer may be the nearest
            given = (value * torch.tensor(term.factor, dtype=torch.float32)).round().long()
        else:
            given = value * _by_channel(term.multiplier, value)
        x = given if x is None else x + given
    assert x is not None, "a neuron reads something"
    x = x + _by_channel(neuron.bias, x)
    left = 0 if before is None else (before - neuron.rest) >> neuron.shift
    charged: Tensor = neuron.rest + left + x
    assert bool((charged.abs() < 2**31).all()), "potentials of 32 bits have overflowed"
    return charged


def _by_channel(values_C: Integers, like: Tensor) -> Tensor:
    """[C] in a shape that works on [N, C, ...]; [1] is for all channels."""
    return torch.from_numpy(values_C).view(-1, *(1 for _ in like.shape[2:]))


def _layer(node: Node, fixed: FixedGraph, values: Values) -> Tensor:
    """Return the output of a node that is no neuron; integers are int64."""
    whole = fixed.whole.issuperset(node.inputs)
    x = sum(values[source] if whole else values[source].float() for source in node.inputs)
    assert isinstance(x, Tensor), "a layer reads something"
    if isinstance(node, Flatten):
        return x.flatten(1)
    if isinstance(node, Pool):
        pool = F.max_pool2d if node.largest else F.avg_pool2d
        pooled = pool(x.float(), node.kernel, node.stride, node.padding)
        return pooled.long() if node.name in fixed.whole else pooled
    assert isinstance(node, Conv | Linear), "there are no other nodes"
    sums = node.name in fixed.accumulators
    # sums of integers below 2^53, exact in float64
    kind = torch.float64 if sums else torch.float32
    weight, bias_O = torch.from_numpy(node.weight), torch.from_numpy(node.bias_O).to(kind)
    if sums:
        assert node.quantised is not None, "it has integer weights"
        weight, bias_O = torch.from_numpy(node.quantised.integers), torch.zeros_like(bias_O)
    if isinstance(node, Linear):
        y = F.linear(x.to(kind), weight.to(kind), bias_O)
    else:
        sizes = (node.stride, node.padding, node.dilation, node.groups)
        y = F.conv2d(x.to(kind), weight.to(kind), bias_O, *sizes)
    return y.long() if sums else y


def integer_content(fixed: FixedGraph, stateful: bool, said: str) -> bytes:
    """Return the ONNX file of `fixed`; `said`: what its integers change, in words.

    As `formats.onnx_content`, except that `v/LAYER` and `v_next/LAYER` are int32.
    """
    writer = _IntegerWriter(graphs.needs("onnx", "onnx"), fixed, stateful)
    writer.write()
    neurons = fixed.neurons.items()
    facts = {
        "stateful": str(stateful).lower(),
        "potentials": "int32; not the float student's own numbers: " + said,
        "neuron_equations": json.dumps({name: neuron.equations for name, neuron in neurons}),
        "first_potentials": json.dumps({name: neuron.rest for name, neuron in neurons}),
        "potential_units": json.dumps({name: neuron.unit for name, neuron in neurons}),
        "weights": (
            "8-bit integers (4-bit ones included), batch norms folded into the multipliers; what "
            "reads spikes sums exactly in 32-bit integers, what reads the image or an average is "
            "floating point, with a scale per output channel"
        ),
    }
    return writer.model({**graphs.metadata(fixed.graph), **facts})


class _IntegerWriter(Writer):
    """Spikes are int32 tensors, as are the outputs of layers that only neurons read."""

    state_type = "INT32"

    def __init__(self, onnx: Any, fixed: FixedGraph, stateful: bool) -> None:
        super().__init__(onnx, fixed.graph, stateful)
        self._fixed = fixed

    def emit(self, node: Node, step: int) -> None:
        if isinstance(node, Neuron):
            self._integer_neuron(node, self._fixed.neurons[node.name], step)
        elif node.name in self._fixed.accumulators:
            self._accumulate(node, step)
        elif isinstance(node, Pool) and node.name in self._fixed.whole:
            # no runtime has a max pool of int32: it is one of floats, and cast back
            pooled = f"{self.name(node.name, step)}/pooled"
            self.add("MaxPool", [self.read(node, step)], pooled, **pool_sizes(node))
            to = self.onnx.TensorProto.INT32
            self.add("Cast", [pooled], self.name(node.name, step), to=to)
        else:
            super().emit(node, step)

    def read(self, node: Node, step: int) -> str:
        """Return the sum that `node` reads: of integers, or of floats where it is no flattening."""
        names = [self.name(source, step) for source in node.inputs]
        if node.name in self._fixed.whole and not isinstance(node, Pool):
            return self.total(names)
        whole = [source in self._fixed.whole for source in node.inputs]
        if all(whole):
            return self.cast(self.total(names), "FLOAT")
        floats = [self.cast(n, "FLOAT") if w else n for n, w in zip(names, whole, strict=True)]
        return self.total(floats)

    def cast(self, name: str, kind: str) -> str:
        """Return a tensor in another type, made once."""
        to = getattr(self.onnx.TensorProto, kind)
        return self.once("Cast", [name], f"{name}/{kind.lower()}", to=to)

    def _accumulate(self, node: Node, step: int) -> None:
        assert isinstance(node, Conv | Linear) and node.quantised is not None
        spikes = self.total([self.name(source, step) for source in node.inputs])
        # ConvInteger and MatMulInteger take 8 bits; sums of more were refused by `fixed_point`
        read, output = self.cast(spikes, "UINT8"), self.name(node.name, step)
        if isinstance(node, Linear):
            # MatMulInteger has no transB
            weight = self.constant(f"{node.name}.integers", node.quantised.integers.T)
            self.add("MatMulInteger", [read, weight], output)
            return
        weight = self.constant(f"{node.name}.integers", node.quantised.integers)
        self.add("ConvInteger", [read, weight], output, **conv_sizes(node))

    def _integer_neuron(self, node: Neuron, fixed: FixedNeuron, step: int) -> None:
        own = self.name(node.name, step)
        before = self.state(node) if self.stateful else f"{node.name}/{step - 1}/v"
        x = self.total([self._term(node, term, step) for term in fixed.terms])
        # integers: sums are exact in any order, so that no program can differ
        charged = self.add("Add", [x, self._own(node, "bias", fixed.bias)], f"{own}/x")
        if step or self.stateful:
            left = self._shifted(node, fixed, before, own)
            charged = self.add("Add", [charged, left], f"{own}/h")
        elif fixed.rest:
            charged = self.add("Add", [charged, self._own(node, "rest", fixed.rest)], f"{own}/h")
        rest = None if fixed.soft else self._own(node, "rest", fixed.rest)
        self.fire(node, step, charged, self._own(node, "threshold", fixed.threshold), rest)

    def _term(self, node: Neuron, term: Term, step: int) -> str:
        """Return one source's part of a neuron's input, as int32."""
        read, name = self.name(term.source, step), f"{node.name}.{term.source}"
        if term.factor:
            factor = self.constant(f"{name}.factor", term.factor)
            scaled = self.once("Mul", [read, factor], f"{read}*{name}")
            return self.cast(self.once("Round", [scaled], f"{scaled}/round"), "INT32")
        multiplier = self._own(node, f"{term.source}.multiplier", term.multiplier)
        return self.once("Mul", [read, multiplier], f"{read}*{name}")

    def _shifted(self, node: Neuron, fixed: FixedNeuron, before: str, own: str) -> str:
        """Return rest + (v - rest >> shift). ONNX shifts no signed integers: floor division."""
        if fixed.shift == 0:
            return before
        if fixed.rest:
            before = self.add("Sub", [before, self._own(node, "rest", fixed.rest)], f"{own}/above")
        divisor = self._own(node, "divisor", 1 << fixed.shift)
        # the remainder has the divisor's sign, so that what is left divides without rounding
        remainder = self.add("Mod", [before, divisor], f"{own}/remainder")
        even = self.add("Sub", [before, remainder], f"{own}/even")
        left = self.add("Div", [even, divisor], f"{own}/left")
        if fixed.rest:
            left = self.add("Add", [left, self._own(node, "rest", fixed.rest)], f"{own}/decayed")
        return left

    def _own(self, node: Neuron, key: str, value: int | Integers) -> str:
        """Return a constant of a neuron, as int32; values by channel in a shape like its maps'."""
        array = np.asarray(value, np.int32)
        if array.ndim:
            array = array.reshape(-1, *(1 for _ in node.shape[1:]))
        return self.constant(f"{node.name}.{key}", array)
