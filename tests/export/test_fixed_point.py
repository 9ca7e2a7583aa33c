"""Integer potentials: the rule by hand, in onnxruntime bit for bit, and what is refused."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tser_cli.base.errors import ExportError
from tser_cli.export import consumers, formats
from tser_cli.export import graph as graphs
from tser_cli.export.fixed_point import FixedGraph, change, fixed_point, integer_content, run_fixed
from tser_cli.export.verify import Recording, compare
from tser_cli.settings.config import NeuronConfig

NEURONS = {
    "if": NeuronConfig(name="if"),
    "soft reset": NeuronConfig(reset="soft"),
    "reset below zero": NeuronConfig(reset_value=-0.25, threshold=0.7),
    "decayed input": NeuronConfig(decay_input=True, threshold=0.4),
}


def outputs(fixed: FixedGraph, images_NCHW: Any, tmp_path: Path, stateful: bool) -> dict[str, Any]:
    path = tmp_path / "file.onnx"
    path.write_bytes(integer_content(fixed, stateful, "nothing"))
    steps = fixed.graph.facts.timesteps
    return consumers.onnx_in_onnxruntime(str(path), images_NCHW.numpy(), steps)


@pytest.mark.parametrize(
    ("student", "bits", "stateful"),
    [("residual", 8, False), ("sew", 8, True), ("residual", 4, True), ("sew", 4, False)],
    indirect=["student"],
)
def test_onnxruntime_gives_every_spike_of_the_rule(
    student: Any, rounded: Any, bits: int, stateful: bool, tmp_path: Path
) -> None:
    made = rounded(student, bits)
    graph, own = made.graph, made.truth
    fixed = fixed_point(graph)
    truth = run_fixed(fixed, student.images_NCHW)
    result = outputs(fixed, student.images_NCHW, tmp_path, stateful)
    logits_TNK = result.pop("logits_TNK")
    assert result.keys() == truth.spikes.keys()
    assert all(np.array_equal(result[name], spikes) for name, spikes in truth.spikes.items())
    np.testing.assert_allclose(logits_TNK, truth.logits_TNK, atol=1e-5)
    # 24 bits below the threshold: next to nothing changes in a small student
    assert change(own, truth).differing < 0.001 * sum(s.size for s in own.spikes.values())


@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_every_kind_of_neuron_has_its_integers(
    make_student: Callable[..., Any], rounded: Any, neuron: Any, tmp_path: Path
) -> None:
    student = make_student("vgg" if neuron.name == "if" else "residual", neuron)
    made = rounded(student, 8)
    graph, own = made.graph, made.truth
    fixed = fixed_point(graph)
    truth = run_fixed(fixed, student.images_NCHW)
    for stateful in (False, True):
        result = outputs(fixed, student.images_NCHW, tmp_path, stateful)
        assert compare(truth, result.pop("logits_TNK"), result, 1e-5).holds(1e-5)
    assert change(own, truth).predictions_differing == 0


def test_potentials_are_the_rule_s_bit_for_bit(residual: Any, rounded: Any, tmp_path: Path) -> None:
    graph = rounded(residual, 8).graph
    fixed = fixed_point(graph)
    (tmp_path / "x").write_bytes(integer_content(fixed, True, ""))
    runtime = importlib.import_module("onnxruntime")
    onnx = importlib.import_module("onnx")
    model = onnx.load(str(tmp_path / "x"))
    model.graph.output.append(onnx.ValueInfoProto(name="act1/0/spikes"))
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    states = [entry for entry in session.get_inputs() if entry.name != "input"]
    assert {entry.type for entry in states} == {"tensor(int32)"}
    images = residual.images_NCHW.numpy()
    state = {e.name: np.zeros([len(images), *e.shape[1:]], np.int32) for e in states}
    names = [entry.name for entry in session.get_outputs()]
    layer = next(node for node in graph.weighted if node.name == "layer1.0.conv1")
    assert isinstance(layer, graphs.Conv) and layer.quantised is not None
    neuron = fixed.neurons["layer1.0.act1"]
    (term,) = neuron.terms
    multiplier, bias = (v[:, None, None].astype(int) for v in (term.multiplier, neuron.bias))
    v = np.zeros([len(images), *layer.shape], dtype=int)
    for _ in range(4):
        values = dict(zip(names, session.run(names, {"input": images, **state}), strict=True))
        sums = brute_force(values["act1/0/spikes"], layer.quantised.integers)
        charged = np.floor(v / 2).astype(int) + multiplier * sums + bias
        v = np.where(charged >= 2**neuron.bits, 0, charged)
        assert np.array_equal(values["v_next/layer1.0.act1"], v)
        state = {name: values["v_next/" + name[2:]] for name in state}
    assert (v < 0).any() and (v % 2 == 1).any()  # where roundings differ


def brute_force(spikes_NCHW: Any, integers: Any) -> Any:
    """A 3 x 3 convolution with a padding of 1, sum by sum."""
    padded = np.pad(spikes_NCHW.astype(int), ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = spikes_NCHW.shape[2:]
    return sum(
        np.einsum(
            "nchw,oc->nohw",
            padded[:, :, row : row + height, column : column + width],
            integers[:, :, row, column].astype(int),
        )
        for row in range(3)
        for column in range(3)
    )


ONE = (1, 1, 1)  # the shape of each map: one channel, one pixel


def by_hand(leak: float = 0.5) -> graphs.Graph:
    """Two neurons: the second one reads 3 units of 0.3 of the first one's spikes, less 0.35."""
    weight = np.array([[[[3.0]]]])
    integers = graphs.Quantised(weight.astype(np.int8), np.array([0.3]), 8)
    sizes = ((1, 1), (0, 0), (1, 1))
    nodes = (
        graphs.Conv("stem", ("input",), ONE, np.ones((1, 1, 1, 1)), np.zeros(1), *sizes, 1),
        graphs.Neuron("one", ("stem",), ONE, "lif", leak, 1.0, 1.0, 0.0),
        graphs.Conv("conv", ("one",), ONE, 0.3 * weight, np.array([-0.35]), *sizes, 1, integers),
        graphs.Neuron("two", ("conv",), ONE, "lif", leak, 1.0, 1.0, 0.0),
        graphs.Flatten("flat", ("two",), (1,)),
        graphs.Linear("fc", ("flat",), (1,), np.ones((1, 1)), np.zeros(1)),
    )
    return graphs.Graph(ONE, nodes, graphs.Facts("net", "hand", (0.0,), (1.0,), ("a",), 3))


def test_the_rule_by_hand() -> None:
    fixed = fixed_point(by_hand())
    first, second = fixed.neurons["one"], fixed.neurons["two"]
    assert (first.bits, second.bits, second.shift, second.rest) == (24, 24, 1, 0)
    assert fixed.accumulators == {"conv"}
    assert (first.exact, second.exact) == (False, True)
    assert second.terms[0].multiplier.tolist() == [round(0.3 * 2**24)]
    assert second.bias.tolist() == [round(-0.35 * 2**24)]
    # an image of 1 fires at each step; the second one gets 0.9 - 0.35 = 0.55: 0.55, 0.825, 0.9625
    ran = run_fixed(fixed, torch.ones(1, 1, 1, 1))
    assert ran.spikes["one"].ravel().tolist() == [True, True, True]
    assert ran.spikes["two"].ravel().tolist() == [False, False, False]
    assert np.isinf(ran.distance["two"]).all()
    assert ran.distance["one"].max() == 0.0  # at the threshold it fires
    assert "h = (v >> 1) + x, where >> rounds down" in second.equations


def test_potentials_that_are_too_large_get_fewer_bits_or_are_refused() -> None:
    def with_bias(bias: float) -> graphs.Graph:
        graph = by_hand()
        nodes = [
            replace(node, bias_O=np.array([bias])) if node.name == "conv" else node
            for node in graph.nodes
        ]
        return replace(graph, nodes=tuple(nodes))

    # |x| < 1e4 + 1, twice of that with what is left of the step before: 2e4 * 2^16 < 2^31
    assert fixed_point(with_bias(-1e4)).neurons["two"].bits == 16
    with pytest.raises(ExportError, match=r"potentials of two reach 2e.08 times the threshold"):
        fixed_point(with_bias(-1e8))


@pytest.mark.parametrize("leak", [2 / 3, 0.0])
def test_a_leak_that_no_shift_makes_is_refused(leak: float) -> None:
    with pytest.raises(ExportError, match=r"the neurons one keep .*neuron\.tau=2"):
        fixed_point(by_hand(leak))


def test_floating_point_weights_have_no_integers(residual: Any) -> None:
    with pytest.raises(ExportError, match=r"need integer weights.*tser quantize"):
        fixed_point(residual.graph)


@pytest.mark.parametrize(
    ("name", "potentials", "said"),
    [
        ("nir", "integer", "--potentials integer belongs to --format onnx; the neurons of nir"),
        ("onnx", "integers", 'unknown kind of potentials "integers" .did you mean "integer"'),
    ],
)
def test_other_formats_hold_none(name: str, potentials: str, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        formats.check_format(name, False, potentials)


def test_a_file_that_computes_otherwise_is_caught(sew: Any, rounded: Any, tmp_path: Path) -> None:
    fixed = fixed_point(rounded(sew, 8).graph)
    truth = run_fixed(fixed, sew.images_NCHW)
    neurons = {
        name: replace(neuron, shift=2) if name == "layer2.0.act2" else neuron
        for name, neuron in fixed.neurons.items()
    }
    result = outputs(replace(fixed, neurons=neurons), sew.images_NCHW, tmp_path, False)
    comparison = compare(truth, result.pop("logits_TNK"), result, 1e-5)
    assert comparison.differing > 0
    assert not comparison.holds(1e-5)


def test_the_file_says_what_its_integers_are(residual: Any, rounded: Any) -> None:
    fixed = fixed_point(rounded(residual, 8).graph)
    onnx = importlib.import_module("onnx")
    model = onnx.load_from_string(integer_content(fixed, True, "3 spikes differ"))
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["potentials"].endswith("not the float student's own numbers: 3 spikes differ")
    assert json.loads(facts["first_potentials"])["act1"] == 0
    assert json.loads(facts["potential_units"])["act1"] == 2.0**-24
    assert "32-bit integers" in json.loads(facts["neuron_equations"])["layer2.0.act2"]
    operators = {node.op_type for node in model.graph.node}
    assert "ConvInteger" in operators


def test_what_changes_is_counted_over_all_steps() -> None:
    def ran(spikes: list[list[bool]], logits: list[list[list[float]]]) -> Recording:
        return Recording(np.array(logits), {"a": np.array(spikes)}, {"a": np.zeros((2, 2))})

    own = ran([[True, False], [True, True]], [[[1.0, 0.0], [0.0, 1.0]]] * 2)
    other = ran([[True, True], [True, False]], [[[1.0, 0.0], [1.5, 1.0]]] * 2)
    found = change(own, other)
    assert tuple(vars(found).values()) == (4, 2, 2, 1, 1, 1.5)
    assert "2 of 4 spikes and silences differ on 2 test images, in 1 of them" in found.sentence()
