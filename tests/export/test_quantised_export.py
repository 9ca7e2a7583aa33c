"""Exports of students with integer weights: the same spikes, and the integers in the file."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tser_cli.export import consumers, formats
from tser_cli.export.graph import Facts, trace
from tser_cli.export.verify import compare, record
from tser_cli.models.integers import quantise, round_weights_
from tser_cli.settings.config import NeuronConfig


@pytest.fixture(scope="module", params=[8, 4])
def quantised(request: pytest.FixtureRequest, residual: Any) -> Any:
    """(bits, graph, images, truth) of the residual student after training, rounded."""
    model = quantise(copy.deepcopy(residual.model), request.param)
    round_weights_(model)
    facts = residual.graph.facts
    graph = trace(model, (1, 8, 8), facts)
    return request.param, graph, residual.images_NCHW, record(model, graph, residual.images_NCHW)


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


def test_the_file_holds_the_integers(quantised: Any, tmp_path: Path) -> None:
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


def test_an_onnx_file_keeps_eight_bit_weights_small(quantised: Any) -> None:
    _, graph, _, _ = quantised
    onnx = importlib.import_module("onnx")
    model = onnx.load_from_string(formats.content(graph, "onnx", False))
    integers = [c for c in model.graph.initializer if c.name.endswith(".integers")]
    assert len(integers) == len(graph.weighted)
    assert {c.data_type for c in integers} == {onnx.TensorProto.INT8}


def test_weights_and_integers_are_the_same_numbers(quantised: Any) -> None:
    _, graph, _, _ = quantised
    for node in graph.weighted:
        scale = node.quantised.scale_O.reshape(-1, *(1 for _ in node.weight.shape[1:]))
        assert np.allclose(node.quantised.integers * scale, node.weight, rtol=1e-12, atol=0)


def test_weights_that_were_never_rounded_are_exported_as_the_network_computes(
    small: Any, tmp_path: Path
) -> None:
    model = quantise(small("sew", NeuronConfig()), 4)
    model.train()(torch.randn(8, 1, 8, 8), 2)
    model.eval()
    facts = Facts("sew", "digits", (0.3,), (0.4,), tuple("0123456789"), 2)
    graph = trace(model, (1, 8, 8), facts)
    images_NCHW = torch.randn(4, 1, 8, 8)
    truth = record(model, graph, images_NCHW)
    path = tmp_path / "file"
    path.write_bytes(formats.content(graph, "nir", False))
    result = consumers.nir_in_spikingjelly(str(path), images_NCHW.numpy(), 2)
    assert compare(truth, result.pop("logits_TNK"), result, 1e-9).holds(1e-5)
