"""Formats by name, and files that say of themselves what they are."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from tser_cli.base.errors import ExportError
from tser_cli.export import formats


@pytest.mark.parametrize(
    ("name", "stateful", "said"),
    [
        ("onx", False, 'unknown format "onx" \\(did you mean "onnx"'),
        ("nir", True, "--stateful belongs to --format onnx"),
        ("safetensors", True, "--stateful belongs to --format onnx"),
    ],
)
def test_a_wrong_format_is_told(residual: Any, name: str, stateful: bool, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        formats.content(residual.graph, name, stateful)


@pytest.mark.parametrize("name", ["nir", "onnx"])
def test_a_missing_extra_is_told_with_the_pip_line(
    residual: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=f"pip install 'tser-cli\\[{name}\\]'"):
        formats.content(residual.graph, name, False)


def test_a_nir_file_holds_weights_neurons_and_facts(residual: Any, tmp_path: Path) -> None:
    nir = importlib.import_module("nir")
    path = tmp_path / "student.nir"
    path.write_bytes(formats.content(residual.graph, "nir", False))
    graph = nir.read(path)
    neuron = graph.nodes["act1"]
    assert type(neuron).__name__ == "LIF"
    assert neuron.tau.shape == (8, 8, 8)
    assert np.unique(neuron.tau) == 2e-4
    assert np.unique(neuron.r) == 2.0
    assert np.array_equal(graph.nodes["conv1"].weight, residual.graph.nodes[0].weight)
    assert json.loads(graph.metadata["classes"]) == list("0123456789")


def test_an_onnx_file_names_its_inputs_and_states(sew: Any, tmp_path: Path) -> None:
    onnx = importlib.import_module("onnx")
    unrolled = onnx.load_from_string(formats.content(sew.graph, "onnx", False))
    assert [entry.name for entry in unrolled.graph.input] == ["input"]
    assert [entry.name for entry in unrolled.graph.output] == ["logits"]
    stems = [node for node in unrolled.graph.node if node.name.startswith("conv1/")]
    assert len(stems) == 1, "what no spike reaches is computed once"
    stateful = onnx.load_from_string(formats.content(sew.graph, "onnx", True))
    states = {f"v/{neuron.name}" for neuron in sew.graph.neurons}
    assert {entry.name for entry in stateful.graph.input} == {"input", *states}
    facts = {entry.key: entry.value for entry in stateful.metadata_props}
    assert facts["stateful"] == "true"


def test_a_safetensors_file_describes_each_node(residual: Any, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    path.write_bytes(formats.content(residual.graph, "safetensors", False))
    with safe_open(path, framework="np") as file:
        nodes = json.loads(file.metadata()["graph"])
        weight = file.get_tensor("fc.weight")
    assert [node["name"] for node in nodes] == [node.name for node in residual.graph.nodes]
    assert nodes[0]["type"] == "Conv"
    assert weight.dtype == np.float32
