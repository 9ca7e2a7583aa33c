"""safetensors: the folded constants as arrays, the graph and its facts as JSON in the header.

For programs of one's own: `LAYER.weight` and `LAYER.bias` in float32; with integer weights
`LAYER.weight` is int8 and `LAYER.scale` float32, a value per output channel.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
from safetensors.numpy import save

from tser_cli.export.graph import Graph, Node, metadata

CONSTANTS = {"weight", "bias_O", "quantised"}


def content(graph: Graph) -> bytes:
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
