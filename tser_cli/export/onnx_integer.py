"""ONNX with integer potentials: int8 weights, sums and potentials of 32-bit integers.

`fixed_point` says what is computed. Layers that read spikes are ConvInteger and MatMulInteger;
what reads the image, an average or gives the logits stays in float32.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tser_cli.export.extras import needs
from tser_cli.export.fixed_point import FixedGraph, FixedNeuron, Term
from tser_cli.export.graph import Conv, Linear, Neuron, Node, Pool, metadata
from tser_cli.export.onnx_file import Writer, conv_sizes, fire, pool_sizes


def content(fixed: FixedGraph, stateful: bool, said: str) -> bytes:
    """Return the ONNX file of `fixed`; `said`: what its integers change, in words.

    As `onnx_file.content`, except that `v/LAYER` and `v_next/LAYER` are int32.
    """
    writer = _IntegerWriter(needs("onnx", "onnx"), fixed, stateful)
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
    return writer.model({**metadata(fixed.graph), **facts})


class _IntegerWriter(Writer):
    """Spikes are int32 tensors, as are the outputs of layers that only neurons read."""

    state_type = "INT32"

    def __init__(self, onnx: Any, fixed: FixedGraph, stateful: bool) -> None:
        super().__init__(onnx, fixed.graph, stateful)
        self._fixed = fixed

    def emit(self, node: Node, step: int) -> None:
        if isinstance(node, Neuron):
            self._neuron(node, self._fixed.neurons[node.name], step)
        elif node.name in self._fixed.accumulators:
            self._accumulate(node, step)
        elif isinstance(node, Pool) and node.name in self._fixed.whole:
            self._pool(node, step)
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
        read, output = self.cast(spikes, "UINT8"), self.name(node.name, step)
        if isinstance(node, Linear):
            weight = self.constant(f"{node.name}.integers", node.quantised.integers.T)
            self.add("MatMulInteger", [read, weight], output)
            return
        weight = self.constant(f"{node.name}.integers", node.quantised.integers)
        self.add("ConvInteger", [read, weight], output, **conv_sizes(node))

    def _pool(self, node: Pool, step: int) -> None:
        """Append a max pool of spikes, which no runtime has for int32."""
        pooled = f"{self.name(node.name, step)}/pooled"
        self.add("MaxPool", [self.read(node, step)], pooled, **pool_sizes(node))
        to = self.onnx.TensorProto.INT32
        self.add("Cast", [pooled], self.name(node.name, step), to=to)

    def _neuron(self, node: Neuron, fixed: FixedNeuron, step: int) -> None:
        own = self.name(node.name, step)
        before = self.state(node) if self.stateful else f"{node.name}/{step - 1}/v"
        x = self.total([self._term(node, term, step) for term in fixed.terms])
        bias = fixed.bias.reshape(-1, *(1 for _ in node.shape[1:]))
        charged = self.add("Add", [x, self._int32(f"{node.name}.bias", bias)], f"{own}/x")
        if step or self.stateful:
            charged = self.add(
                "Add", [charged, self._shifted(node, fixed, before, own)], f"{own}/h"
            )
        elif fixed.rest:
            charged = self.add("Add", [charged, self._own(node, "rest", fixed.rest)], f"{own}/h")
        rest = None if fixed.soft else self._own(node, "rest", fixed.rest)
        fire(self, node, step, charged, self._own(node, "threshold", fixed.threshold), rest)

    def _term(self, node: Neuron, term: Term, step: int) -> str:
        """Return one source's part of a neuron's input, as int32."""
        read, name = self.name(term.source, step), f"{node.name}.{term.source}"
        if term.factor:
            scaled = self.once(
                "Mul", [read, self.constant(f"{name}.factor", term.factor)], f"{read}*{name}"
            )
            return self.cast(self.once("Round", [scaled], f"{scaled}/round"), "INT32")
        multiplier = term.multiplier.reshape(-1, *(1 for _ in node.shape[1:]))
        constant = self._int32(f"{name}.multiplier", multiplier)
        return self.once("Mul", [read, constant], f"{read}*{name}")

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

    def _own(self, node: Neuron, key: str, value: int) -> str:
        return self._int32(f"{node.name}.{key}", value)

    def _int32(self, name: str, value: Any) -> str:
        return self.constant(name, np.asarray(value).astype(np.int32))
