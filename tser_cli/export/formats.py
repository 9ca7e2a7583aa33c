"""The file formats by name: NIR, ONNX and safetensors; see `content`.

NIR (Pedersen et al., Nature Communications 15, 2024) is a graph of weights and neurons in HDF5. Our
LIF is its LIF under Euler steps of 0.1 ms, which its readers fix in their code:
tau dv/dt = v_leak - v + r x, so that leak = 1 - dt / tau and gain = r dt / tau.

safetensors, for programs of your own, holds the folded constants as arrays: `LAYER.weight` and
`LAYER.bias` in float32; with integer weights `LAYER.weight` is int8 and `LAYER.scale` float32, a
value per output channel. The graph and its facts are JSON in the header.

ONNX: the T steps unrolled into one graph, or one step with the membrane potentials as state. What
comes before the first spikes is computed once. Constants are float32; integer weights stay int8
behind a DequantizeLinear.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import fields
from typing import Any

import numpy as np
from safetensors.numpy import save

from tser_cli.base.errors import ExportError, unknown
from tser_cli.export import graph as graphs
from tser_cli.export.graph import INPUT, Conv, Flatten, Graph, Linear, Neuron, Node, Operation, Pool

FORMATS = ("nir", "onnx", "safetensors")
FLOAT, INTEGER = "float", "integer"


def check_format(name: str, stateful: bool, potentials: str = FLOAT) -> None:
    """Raise ExportError for an unknown format, or for what ONNX alone can hold in another.

    That is potentials as inputs and outputs, or as integers.
    """
    if potentials not in (FLOAT, INTEGER):
        raise ExportError(unknown("kind of potentials", potentials, (FLOAT, INTEGER)))
    if potentials == INTEGER and name != "onnx":
        raise ExportError(
            f"--potentials integer belongs to --format onnx; the neurons of {name} are equations "
            "of floating point"
        )
    if name not in FORMATS:
        raise ExportError(unknown("format", name, FORMATS))
    if stateful and name != "onnx":
        raise ExportError(
            f"--stateful belongs to --format onnx; {name} describes one step already, whose state "
            "the reader keeps"
        )


def content(graph: Graph, name: str, stateful: bool) -> bytes:
    """Return the file of `graph` in a format. Raises ExportError where the format can't hold it."""
    check_format(name, stateful)
    if name == "onnx":
        return onnx_content(graph, stateful)
    return nir_content(graph) if name == "nir" else safetensors_content(graph)


DT = 1e-4  # seconds a time step: what snnTorch and spikingjelly assume


def nir_content(graph: Graph) -> bytes:
    """Return the NIR file of `graph`. Raises ExportError where NIR can't hold it, or is missing."""
    check(graph)
    nir = graphs.needs("nir", "nir")
    shapes = {INPUT: graph.input_shape, **{node.name: node.shape for node in graph.nodes}}
    nodes = {
        INPUT: nir.Input(np.array(graph.input_shape)),
        **{node.name: _nir_node(nir, node, shapes[node.inputs[0]]) for node in graph.nodes},
        "output": nir.Output(np.array(graph.nodes[-1].shape)),
    }
    edges = [(source, node.name) for node in graph.nodes for source in node.inputs]
    edges.append((graph.output, "output"))
    stream = io.BytesIO()
    nir.write(stream, nir.NIRGraph(nodes, edges, metadata=graphs.metadata(graph)))
    return stream.getvalue()


def _nir_node(nir: Any, node: Node, read: tuple[int, ...]) -> object:
    """Return NIR's node; `read`: the shape of what it reads."""
    if isinstance(node, Conv):
        sizes = (node.stride, node.padding, node.dilation, node.groups)
        return nir.Conv2d(read[1:], node.weight, *sizes, node.bias_O)
    if isinstance(node, Linear):
        return nir.Affine(node.weight, node.bias_O)
    if isinstance(node, Pool):
        return nir.AvgPool2d(*(np.array(size) for size in (node.kernel, node.stride, node.padding)))
    if isinstance(node, Flatten):
        return nir.Flatten({INPUT: np.array(read)}, start_dim=0, end_dim=-1)
    assert isinstance(node, Neuron), "there are no other nodes"
    # a value for each neuron, as NIR wants it, though those of a layer are all alike
    everywhere = np.ones(node.shape, dtype=np.float64)
    common = {"v_threshold": node.threshold * everywhere, "v_reset": node.rest * everywhere}
    if node.kind == "if":
        return nir.IF(r=everywhere / DT, **common)
    # the equations at the head of this file, solved for tau and r
    tau = DT / (1.0 - node.leak)
    gain = node.gain * tau / DT
    return nir.LIF(tau=tau * everywhere, r=gain * everywhere, v_leak=common["v_reset"], **common)


def check(graph: Graph) -> None:
    """Raise ExportError, naming the layer, where NIR has no node for one of `graph`."""
    for node in graph.nodes:
        if isinstance(node, Pool) and node.largest:
            raise ExportError(
                f"NIR has no max pool, and {graph.facts.model} has one ({node.name}). Export to "
                "onnx, or distil a residual or SEW student with --set model.stem=medium"
            )
        if isinstance(node, Neuron) and node.reset is None:
            raise ExportError(
                f"NIR's neurons reset to a value, those of this student ({node.name}, ...) by "
                "subtraction. Export to onnx, or distil with --set neuron.reset=hard"
            )
        if isinstance(node, Operation) or (isinstance(node, Conv) and node.weight.ndim != 4):
            what = node.kind if isinstance(node, Operation) else "convolution over tokens"
            raise ExportError(
                f"NIR, as its readers take it, has no {what}, and {graph.facts.model} has one "
                f"({node.name}). Export to onnx"
            )
        if isinstance(node, Conv) and node.groups != 1:
            raise ExportError(
                f"the grouped convolution {node.name} can't be read back by spikingjelly's NIR "
                "import. Export to onnx"
            )


CONSTANTS = {"weight", "bias_O", "quantised"}


def safetensors_content(graph: Graph) -> bytes:
    """Return the safetensors file of `graph`."""
    arrays: dict[str, np.ndarray] = {}
    for node in graph.weighted:
        arrays[f"{node.name}.bias"] = node.bias_O.astype(np.float32)
        # integers stay integers, so that a program of yours can compute with them
        if node.quantised is None:
            arrays[f"{node.name}.weight"] = node.weight.astype(np.float32)
        else:
            arrays[f"{node.name}.weight"] = node.quantised.integers
            arrays[f"{node.name}.scale"] = node.quantised.scale_O.astype(np.float32)
    # each node without its arrays: its type, name, inputs, shape and sizes
    described = [
        {
            "type": type(node).__name__,
            **{f.name: getattr(node, f.name) for f in fields(node) if f.name not in CONSTANTS},
        }
        for node in graph.nodes
    ]
    content = save(arrays, {**graphs.metadata(graph), "graph": json.dumps(described)})
    # save writes the metadata in another order each time: sorted, the same run is the same bytes
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the arrays stay aligned
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


OPSET = 17
IR_VERSION = 9  # read by onnxruntime from 1.15 on
LOGITS = "logits"
STATE_IN = "v/"
STATE_OUT = "v_next/"


def onnx_content(graph: Graph, stateful: bool) -> bytes:
    """Return the ONNX file of `graph`. Raises ExportError where the package is not installed.

    Unrolled: `input` [N, C, H, W] -> `logits` [T, N, K]; of frames of events `input/0`, `input/1`
    and so on, one a step. Stateful: `input` of one step, also `v/LAYER` -> `v_next/LAYER` for every
    spiking layer, and `logits` [N, K]; potentials start at each neuron's rest.
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
        # what differs from step to step: neurons, and what reads them; frames from the start
        self._moving: set[str] = {INPUT} if graph.facts.frames and not stateful else set()
        for node in graph.nodes:
            if isinstance(node, Neuron) or self._moving & set(node.inputs):
                self._moving.add(node.name)
        self._known: set[str] = set()
        self.made: list[Any] = []
        shown = [self.name(INPUT, step) for step in range(self._steps)]
        self.inputs = [self._tensor(name, graph.input_shape) for name in dict.fromkeys(shown)]
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
        elif isinstance(node, Operation):
            self._operation(node, step, output)
        else:
            self.add("Flatten", [self.read(node, step)], output, axis=1)

    def _operation(self, node: Operation, step: int, output: str) -> None:
        read = [self.total([self.name(one, step) for one in each]) for each in node.operands]
        whole = np.array([int(size) for size in node.sizes])
        if node.kind in ("matmul", "mul"):
            self.add("MatMul" if node.kind == "matmul" else "Mul", read, output)
        elif node.kind == "scale":
            self.add("Mul", [*read, self.constant(f"{node.name}.factor", node.sizes[0])], output)
        elif node.kind == "reshape":
            shape = self.constant(f"{node.name}.shape", np.array([0, *node.shape]))
            self.add("Reshape", [*read, shape], output)
        elif node.kind == "transpose":
            self.add("Transpose", read, output, perm=whole.tolist())
        elif node.kind == "slice":
            names = (f"{node.name}.{word}" for word in ("axis", "begin", "end"))
            axis, begin, end = map(self.constant, names, whole.reshape(3, 1))
            self.add("Slice", [*read, begin, end, axis], output)
        elif node.kind == "sum":
            axes = self.constant(f"{node.name}.axes", whole)
            self.add("ReduceSum", [*read, axes], output, keepdims=self._keeps(node))
        else:
            axes_of_mean = whole.tolist()
            self.add("ReduceMean", read, output, axes=axes_of_mean, keepdims=self._keeps(node))

    def _keeps(self, node: Operation) -> int:
        """Return whether a sum leaves its axes, of length 1."""
        before = next(one for one in self._graph.nodes if one.name in node.operands[0])
        return int(len(before.shape) == len(node.shape))

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
        if node == INPUT and node not in self._moving:
            return node
        return f"{node}/{step if node in self._moving else 0}"

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
