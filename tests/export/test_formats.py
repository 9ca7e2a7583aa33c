"""Formats by name, files that say what they are, and the integers in them."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.energy import zoo
from tser_cli.base.errors import ExportError
from tser_cli.export import consumers, formats
from tser_cli.export.fixed_point import fixed_point
from tser_cli.export.graph import Conv, Facts, Graph, Operation, trace
from tser_cli.export.verify import compare, record
from tser_cli.models.base import build_model
from tser_cli.models.integers import quantise
from tser_cli.settings.config import NeuronConfig

FACTS = Facts("net", "digits", (0.3,), (0.4,), tuple("0123456789"), 2)


@pytest.fixture(scope="module", params=[8, 4])
def quantised(request: pytest.FixtureRequest, residual: Any, rounded: Any) -> Any:
    """(bits, graph, images, truth) of the residual student after training, rounded."""
    made = rounded(residual, request.param)
    return request.param, made.graph, made.images_NCHW, made.truth


@pytest.mark.parametrize(
    ("format_name", "library"),
    [("nir", "snntorch"), ("onnx", "onnxruntime"), ("safetensors", "safetensors")],
)
def test_other_libraries_give_the_spikes_of_integer_weights(
    quantised: Any, format_name: str, library: str, tmp_path: Path
) -> None:
    _, graph, images_NCHW, truth = quantised
    path = tmp_path / "file"
    path.write_bytes(formats.content(graph, format_name, False))
    result = consumers.LIBRARIES[library](str(path), images_NCHW.numpy(), graph.facts.timesteps)
    assert compare(truth, result.pop("logits_TNK"), result, 1e-5).holds(1e-5)


def test_files_hold_the_integers(quantised: Any, tmp_path: Path) -> None:
    bits, graph, _, _ = quantised
    path = tmp_path / "file"
    path.write_bytes(formats.content(graph, "safetensors", False))
    with safe_open(path, framework="np") as file:
        weight, scale = file.get_tensor("layer1.0.conv1.weight"), file.get_tensor("fc.scale")
        metadata = file.metadata()
    assert weight.dtype == np.int8
    assert np.abs(weight).max() == 2 ** (bits - 1) - 1
    assert scale.shape == (10,)
    assert "8-bit integers" in metadata["weights"]
    assert json.loads(metadata["weight_bits"])["layer1.0.conv1"] == bits
    onnx = importlib.import_module("onnx")
    model = onnx.load_from_string(formats.content(graph, "onnx", False))
    integers = [c for c in model.graph.initializer if c.name.endswith(".integers")]
    assert len(integers) == len(graph.weighted)
    assert {c.data_type for c in integers} == {onnx.TensorProto.INT8}
    for node in graph.weighted:  # weights and integers are the same numbers
        scale = node.quantised.scale_O.reshape(-1, *(1 for _ in node.weight.shape[1:]))
        assert np.allclose(node.quantised.integers * scale, node.weight, rtol=1e-12, atol=0)


def test_weights_that_were_never_rounded_are_exported_as_the_network_computes(
    small: Any, tmp_path: Path
) -> None:
    model = quantise(small("sew", NeuronConfig()), 4)
    model.train()(torch.randn(8, 1, 8, 8), 2)
    model.eval()
    graph = trace(model, (1, 8, 8), FACTS)
    images_NCHW = torch.randn(4, 1, 8, 8)
    truth = record(model, graph, images_NCHW)
    path = tmp_path / "file"
    path.write_bytes(formats.content(graph, "nir", False))
    result = consumers.nir_in_spikingjelly(str(path), images_NCHW.numpy(), 2)
    assert compare(truth, result.pop("logits_TNK"), result, 1e-9).holds(1e-5)


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


def grouped(graph: Graph) -> Graph:
    first = graph.nodes[0]
    assert isinstance(first, Conv)
    return replace(graph, nodes=(replace(first, groups=2), *graph.nodes[1:]))


@pytest.mark.parametrize(
    ("kind", "neuron", "change", "said"),
    [
        ("vgg", NeuronConfig(), None, r"NIR has no max pool.*features"),
        ("residual", NeuronConfig(reset="soft"), None, r"act1.*neuron.reset=hard"),
        ("residual", NeuronConfig(), grouped, "grouped convolution conv1"),
    ],
)
def test_nir_names_what_it_can_t_hold(
    small: Any, kind: str, neuron: NeuronConfig, change: Any, said: str
) -> None:
    graph = trace(small(kind, neuron), (1, 8, 8), FACTS)
    with pytest.raises(ExportError, match=said):
        formats.nir_content(change(graph) if change else graph)


def test_the_stem_without_a_pool_can_be_written_as_nir() -> None:
    sizes = {"channels": 1, "height": 32, "width": 32, "num_classes": 10}
    model = build_model("resnet20", neuron=NeuronConfig(), stem="medium", **sizes).eval()
    graph = trace(model, (1, 32, 32), FACTS)
    assert graph.nodes[0].shape == (16, 16, 16)
    formats.check(graph)


def test_the_same_student_is_the_same_bytes(sew: Any) -> None:
    contents = {formats.content(sew.graph, "safetensors", False) for _ in range(4)}
    assert len(contents) == 1


@pytest.mark.parametrize("name", zoo.STUDENTS)
def test_products_of_spikes_are_computed_alike_elsewhere(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model: Any = zoo.student(name).eval()
    graph = trace(model, (1, 8, 8), replace(FACTS, model=name))
    images_NCHW = torch.randn(6, 1, 8, 8)
    truth = record(model, graph, images_NCHW)
    assert all(spikes.any() for spikes in truth.spikes.values())
    files = [("safetensors", "safetensors", False), ("onnx", "onnxruntime", False)]
    files += [("onnx", "onnxruntime", True)] if name == "qkformer_tiny" else []
    if name == "ms_resnet_tiny":
        files += [("nir", "snntorch", False), ("nir", "spikingjelly", False)]
    else:
        refusal = r"NIR has no max pool, and .*\((patch_embed|stage)"
        with pytest.raises(ExportError, match=refusal):
            formats.content(graph, "nir", False)
        tokens = [n for n in graph.nodes if isinstance(n, Operation) or _over_tokens(n)]
        with pytest.raises(ExportError, match=f"NIR, as its readers .*{name}.*{tokens[0].name}"):
            formats.check(replace(graph, nodes=(tokens[0],)))
    for format_name, library, stateful in files:
        path = tmp_path / "file"
        path.write_bytes(formats.content(graph, format_name, stateful))
        result = consumers.LIBRARIES[library](str(path), images_NCHW.numpy(), 2)
        assert compare(truth, result.pop("logits_TNK"), result, 1e-5).holds(1e-5), library


def _over_tokens(node: Any) -> bool:
    return isinstance(node, Conv) and node.weight.ndim == 3


def test_integer_potentials_are_refused_by_the_product_s_name() -> None:
    model: Any = quantise(zoo.student("sdt_tiny"), 8)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"products or sums between them \(blocks.0.attn"):
        fixed_point(trace(model.eval(), (1, 8, 8), FACTS))
