"""The file formats by name.

NIR (Pedersen et al., Nature Communications 15, 2024): a graph of weights and neurons in HDF5.

Our LIF is its LIF under Euler steps of 0.1 ms, which its readers fix in their code:
tau dv/dt = v_leak - v + r x, so that leak = 1 - dt / tau and gain = r dt / tau.

safetensors: the folded constants as arrays, the graph and its facts as JSON in the header.

For programs of one's own: `LAYER.weight` and `LAYER.bias` in float32; with integer weights
`LAYER.weight` is int8 and `LAYER.scale` float32, a value per output channel.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from safetensors.numpy import save

from tser_cli.base.errors import ExportError, unknown
from tser_cli.export import onnx_file
from tser_cli.export.graph import (
    INPUT,
    Array,
    Conv,
    Flatten,
    Graph,
    Linear,
    Neuron,
    Node,
    Pool,
    metadata,
    needs,
)

FORMATS = ("nir", "onnx", "safetensors")
FLOAT, INTEGER = "float", "integer"


def check_format(name: str, stateful: bool, potentials: str = FLOAT) -> None:
    """Raise ExportError for an unknown format, or for potentials as inputs or as integers in
    another than ONNX.
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
        return onnx_file.content(graph, stateful)
    return nir_content(graph) if name == "nir" else safetensors_content(graph)


DT = 1e-4  # seconds a time step: what snnTorch and spikingjelly assume
OUTPUT = "output"


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
        if isinstance(node, Conv) and node.groups != 1:
            raise ExportError(
                f"the grouped convolution {node.name} can't be read back by spikingjelly's NIR "
                "import. Export to onnx"
            )


def nir_content(graph: Graph) -> bytes:
    """Return the NIR file of `graph`. Raises ExportError where NIR can't hold it or is not
    installed.
    """
    check(graph)
    nir = needs("nir", "nir")
    nodes = {
        INPUT: nir.Input(np.array(graph.input_shape)),
        **{node.name: MAKERS[type(node)](node, graph) for node in graph.nodes},
        OUTPUT: nir.Output(np.array(graph.nodes[-1].shape)),
    }
    edges = [*graph.edges, (graph.output, OUTPUT)]
    stream = io.BytesIO()
    nir.write(stream, nir.NIRGraph(nodes, edges, metadata=metadata(graph)))
    return stream.getvalue()


def shape_read(node: Node, graph: Graph) -> tuple[int, ...]:
    """Return the shape of what `node` reads, without the batch."""
    shapes = {INPUT: graph.input_shape, **{other.name: other.shape for other in graph.nodes}}
    return shapes[node.inputs[0]]


def _conv(node: Node, graph: Graph) -> object:
    import nir

    assert isinstance(node, Conv)
    sizes = (node.stride, node.padding, node.dilation, node.groups)
    return nir.Conv2d(shape_read(node, graph)[1:], node.weight, *sizes, node.bias_O)


def _linear(node: Node, graph: Graph) -> object:
    import nir

    assert isinstance(node, Linear)
    return nir.Affine(node.weight, node.bias_O)


def _pool(node: Node, graph: Graph) -> object:
    import nir

    assert isinstance(node, Pool)
    return nir.AvgPool2d(*(np.array(size) for size in (node.kernel, node.stride, node.padding)))


def _flatten(node: Node, graph: Graph) -> object:
    import nir

    return nir.Flatten({INPUT: np.array(shape_read(node, graph))}, start_dim=0, end_dim=-1)


def _neuron(node: Node, graph: Graph) -> object:
    import nir

    assert isinstance(node, Neuron)

    def everywhere(value: float) -> Array:
        return np.full(node.shape, value, dtype=np.float64)

    common = {"v_threshold": everywhere(node.threshold), "v_reset": everywhere(node.rest)}
    if node.kind == "if":
        return nir.IF(r=everywhere(1.0 / DT), **common)
    tau = DT / (1.0 - node.leak)
    return nir.LIF(
        tau=everywhere(tau),
        r=everywhere(node.gain * tau / DT),
        v_leak=everywhere(node.rest),
        **common,
    )


MAKERS: dict[type[Node], Callable[[Node, Graph], object]] = {
    Conv: _conv,
    Linear: _linear,
    Pool: _pool,
    Flatten: _flatten,
    Neuron: _neuron,
}


CONSTANTS = {"weight", "bias_O", "quantised"}


def safetensors_content(graph: Graph) -> bytes:
    """Return the safetensors file of `graph`."""
    arrays: dict[str, np.ndarray] = {}
    for node in graph.weighted:
        arrays[f"{node.name}.bias"] = node.bias_O.astype(np.float32)
        if node.quantised is None:
            arrays[f"{node.name}.weight"] = node.weight.astype(np.float32)
        else:
            arrays[f"{node.name}.weight"] = node.quantised.integers
            arrays[f"{node.name}.scale"] = node.quantised.scale_O.astype(np.float32)
    described = [_described(node) for node in graph.nodes]
    return save(arrays, {**metadata(graph), "graph": json.dumps(described)})


def _described(node: Node) -> dict[str, Any]:
    """Return the node without its arrays: its type, name, inputs, shape and sizes."""
    kept = [field.name for field in fields(node) if field.name not in CONSTANTS]
    return {"type": type(node).__name__, **{name: getattr(node, name) for name in kept}}
