"""ONNX: the T steps unrolled into one graph, or one step with the membrane potentials as state.

What comes before the first spikes is computed once. Constants are float32; integer weights stay
int8 behind a DequantizeLinear.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tser_cli.export import graph as graphs
from tser_cli.export.graph import INPUT, Conv, Graph, Linear, Neuron, Node, Pool

OPSET = 17
IR_VERSION = 9  # read by onnxruntime from 1.15 on
LOGITS = "logits"
STATE_IN = "v/"
STATE_OUT = "v_next/"


def content(graph: Graph, stateful: bool = False) -> bytes:
    """Return the ONNX file of `graph`. Raises ExportError where the package is not installed.

    Unrolled: `input` [N, C, H, W] -> `logits` [T, N, K]. Stateful: also `v/LAYER` -> `v_next/LAYER`
    for every spiking layer, and `logits` [N, K]; potentials start at each neuron's rest.
    """
    writer = Writer(graphs.needs("onnx", "onnx"), graph, stateful)
    writer.write()
    return writer.model({**graphs.metadata(graph), "stateful": str(stateful).lower()})


class Writer:
    """Collects the operators. A tensor of layer L at step t is `L/t`; its spikes `L/t/spikes`."""

    state_type = "FLOAT"

    def __init__(self, onnx: Any, graph: Graph, stateful: bool) -> None:
        self.onnx = onnx
        self._graph = graph
        self.stateful = stateful
        self._steps = 1 if stateful else graph.facts.timesteps
        # what differs from step to step: neurons, and what reads them
        self._moving: set[str] = set()
        for node in graph.nodes:
            if isinstance(node, Neuron) or self._moving & set(node.inputs):
                self._moving.add(node.name)
        self._known: set[str] = set()
        self.made: list[Any] = []
        self.inputs = [self._tensor(INPUT, graph.input_shape)]
        self.outputs: list[Any] = []
        self.constants: list[Any] = []

    def write(self) -> None:
        classes = self._graph.nodes[-1].shape
        # outputs are listed in this order: logits come before the potentials that neurons add
        if self.stateful:
            self.outputs.append(self._tensor(LOGITS, classes))
        for step in range(self._steps):
            for node in self._graph.nodes:
                # what no spike reaches is the same at every step: it is computed once
                if step == 0 or node.name in self._moving:
                    self.emit(node, step)
        last = [self.name(self._graph.output, step) for step in range(self._steps)]
        if self.stateful:
            self.add("Identity", last, LOGITS)
            return
        self.constant("first_axis", np.array([0]))
        steps = [self.add("Unsqueeze", [name, "first_axis"], f"{name}/step") for name in last]
        self.add("Concat", steps, LOGITS, axis=0)
        logits = self.onnx.helper.make_tensor_value_info(
            LOGITS, self.onnx.TensorProto.FLOAT, [self._steps, "N", *classes]
        )
        self.outputs.append(logits)

    def emit(self, node: Node, step: int) -> None:
        """Append the operators of a node at a step."""
        if isinstance(node, Neuron):
            self._neuron(node, step)
            return
        output = self.name(node.name, step)
        if isinstance(node, Conv):
            inputs = [self.read(node, step), self.weight(node)]
            bias = self.constant(f"{node.name}.bias", node.bias_O)
            self.add("Conv", [*inputs, bias], output, **conv_sizes(node))
        elif isinstance(node, Linear):
            bias = self.constant(f"{node.name}.bias", node.bias_O)
            inputs = [self.read(node, step), self.weight(node), bias]
            self.add("Gemm", inputs, output, transB=1)
        elif isinstance(node, Pool):
            kind = "MaxPool" if node.largest else "AveragePool"
            self.add(kind, [self.read(node, step)], output, **pool_sizes(node))
        else:
            self.add("Flatten", [self.read(node, step)], output, axis=1)

    def _neuron(self, node: Neuron, step: int) -> None:
        own, x = self.name(node.name, step), self.read(node, step)
        # at the first step of all there is no potential yet: it rests
        before = f"{node.name}/{step - 1}/v" if step else None
        before = self.state(node) if self.stateful else before
        charged = self._charge(node, x, before, own)
        rest = None if node.reset is None else self.own(node, "rest")
        self.fire(node, step, charged, self.own(node, "threshold"), rest)

    def _charge(self, node: Neuron, x: str, before: str | None, own: str) -> str:
        """h = rest + leak (v - rest) + gain x, without the parts that change nothing."""
        if node.gain != 1.0:
            x = self.add("Mul", [x, self.own(node, "gain")], f"{own}/x")
        if before is None:
            return self.add("Add", [x, self.own(node, "rest")], f"{own}/h") if node.rest else x
        if node.rest:
            before = self.add("Sub", [before, self.own(node, "rest")], f"{own}/above")
        if node.leak != 1.0:
            before = self.add("Mul", [before, self.own(node, "leak")], f"{own}/left")
        if node.rest:
            before = self.add("Add", [before, self.own(node, "rest")], f"{own}/decayed")
        return self.add("Add", [before, x], f"{own}/h")

    def fire(self, node: Neuron, step: int, charged: str, threshold: str, rest: str | None) -> None:
        """Append the spikes of the potentials `charged`, and the potentials after them.

        `threshold` and `rest` are constants; where `rest` is None the threshold is subtracted.
        Spikes and potentials are of the writer's `state_type`.
        """
        own = self.name(node.name, step)
        fired = self.add("GreaterOrEqual", [charged, threshold], f"{own}/fired")
        to = getattr(self.onnx.TensorProto, self.state_type)
        spikes = self.add("Cast", [fired], f"{own}/spikes", to=to)
        # under two names: readers ask for the output of a layer, checks for its spikes
        self.add("Identity", [spikes], own)
        after = STATE_OUT + node.name if self.stateful else f"{own}/v"
        if rest is None:
            lost = self.add("Mul", [spikes, threshold], f"{own}/lost")
            self.add("Sub", [charged, lost], after)
        else:
            # a choice, and no product: what is kept is kept to the bit
            self.add("Where", [fired, rest, charged], after)

    def model(self, facts: dict[str, str]) -> bytes:
        """Return the file of all that was appended, with its metadata."""
        helper = self.onnx.helper
        graph = helper.make_graph(
            self.made, "spiking network", self.inputs, self.outputs, self.constants
        )
        model = helper.make_model(
            graph,
            producer_name="tser",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, facts)
        # shapes and types of every operator, before anyone else reads the file
        self.onnx.checker.check_model(model, full_check=True)
        written: bytes = model.SerializeToString()
        return written

    def name(self, node: str, step: int) -> str:
        """Return the tensor of `node` at `step`; what no spike reaches is always the same."""
        return node if node == INPUT else f"{node}/{step if node in self._moving else 0}"

    def read(self, node: Node, step: int) -> str:
        """Return the tensor that `node` reads: its only input, or the sum of them."""
        return self.total([self.name(source, step) for source in node.inputs])

    def total(self, names: list[str]) -> str:
        """Return the sum of tensors, first to last, each addition made once."""
        total = names[0]
        for name in names[1:]:
            total = self.once("Add", [total, name], f"{total}+{name}")
        return total

    def once(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append an operator unless its output is there already; returns its name."""
        if output not in self._known:
            self._known.add(self.add(operator, inputs, output, **attributes))
        return output

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append an operator; returns the name of its output."""
        node = self.onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
        self.made.append(node)
        return output

    def constant(self, name: str, value: Any) -> str:
        """Append a constant once, float64 as float32; returns its name."""
        if name not in self._known:
            array = np.asarray(value)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            self.constants.append(self.onnx.numpy_helper.from_array(array, name))
            self._known.add(name)
        return name

    def weight(self, node: Conv | Linear) -> str:
        """Return the weights of `node`, once for all steps: float32, or int8 and what undoes it."""
        name = f"{node.name}.weight"
        if node.quantised is None:
            return self.constant(name, node.weight)
        # int8 in the file: a quarter of its size
        if name not in self._known:
            integers = self.constant(f"{node.name}.integers", node.quantised.integers)
            scale = self.constant(f"{node.name}.scale", node.quantised.scale_O)
            self._known.add(self.add("DequantizeLinear", [integers, scale], name, axis=0))
        return name

    def own(self, node: Neuron, key: str) -> str:
        """Return a constant of a neuron's equations."""
        return self.constant(f"{node.name}.{key}", float(getattr(node, key)))

    def state(self, node: Neuron) -> str:
        """Return the potentials of `node` as an input and an output of a stateful graph."""
        kind = self.state_type
        self.inputs.append(self._tensor(STATE_IN + node.name, node.shape, kind))
        self.outputs.append(self._tensor(STATE_OUT + node.name, node.shape, kind))
        return STATE_IN + node.name

    def _tensor(self, name: str, shape: tuple[int, ...], kind: str = "FLOAT") -> Any:
        made = self.onnx.helper.make_tensor_value_info
        return made(name, getattr(self.onnx.TensorProto, kind), ["N", *shape])


def conv_sizes(node: Conv) -> dict[str, Any]:
    """Return the attributes of a convolution of any kind."""
    pads = node.padding * 2
    return {"strides": node.stride, "pads": pads, "dilations": node.dilation, "group": node.groups}


def pool_sizes(node: Pool) -> dict[str, Any]:
    """Return the attributes of a pool."""
    return {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding * 2}
