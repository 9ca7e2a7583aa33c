"""The file formats by name: NIR, ONNX and safetensors.

NIR (Pedersen et al., Nature Communications 15, 2024) is a graph of weights and neurons in HDF5. Our
LIF is its LIF under Euler steps of 0.1 ms, which its readers fix in their code:
tau dv/dt = v_leak - v + r x, so that leak = 1 - dt / tau and gain = r dt / tau.

safetensors, for programs of your own, holds the folded constants as arrays: `LAYER.weight` and
`LAYER.bias` in float32; with integer weights `LAYER.weight` is int8 and `LAYER.scale` float32, a
value per output channel. The graph and its facts are JSON in the header.
"""

from __future__ import annotations

import io
import json
from dataclasses import fields
from typing import Any

import numpy as np
from safetensors.numpy import save

from tser_cli.base.errors import ExportError, unknown
from tser_cli.export import graph as graphs
from tser_cli.export import onnx_file
from tser_cli.export.graph import INPUT, Conv, Flatten, Graph, Linear, Neuron, Node, Pool

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
        return onnx_file.content(graph, stateful)
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
    edges = [*graph.edges, (graph.output, "output")]
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
    return save(arrays, {**graphs.metadata(graph), "graph": json.dumps(described)})
