"""NIR (Pedersen et al., Nature Communications 15, 2024): a graph of weights and neurons in HDF5.

Our LIF is its LIF under Euler steps of 0.1 ms, which its readers fix in their code:
tau dv/dt = v_leak - v + r x, so that leak = 1 - dt / tau and gain = r dt / tau.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

from tser_cli.errors import ExportError
from tser_cli.export.extras import needs
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
)

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


def content(graph: Graph) -> bytes:
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
