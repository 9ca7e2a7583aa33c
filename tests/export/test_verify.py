"""Exported students give the same spikes elsewhere, and what counts as a difference."""

from __future__ import annotations

import ast
import copy
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tser_cli.base.errors import ExportError
from tser_cli.export import consumers, fixed_point, formats, verify
from tser_cli.export.graph import Neuron, trace
from tser_cli.export.verify import Recording, SpikeComparison, charges, compare, record
from tser_cli.settings.config import NeuronConfig

STUDENTS = ["residual", "sew"]


@pytest.mark.parametrize("student", STUDENTS, indirect=True)
def test_every_program_gives_every_spike_and_the_logits(
    student: Any, in_process: None, tmp_path: Path
) -> None:
    # it spikes in every layer
    assert all(0 < spikes.sum() < spikes.size for spikes in student.truth.spikes.values())
    for format_name, gap in (("nir", 1e-10), ("onnx", 1e-5), ("safetensors", 1e-5)):
        content = formats.content(student.graph, format_name, False)
        checks = verify.verify(content, format_name, student.truth, student.images_NCHW)
        assert [check.target for check in checks] == list(verify.TARGETS[format_name])
        for check in checks:
            comparison = check.comparison
            assert check.holds
            assert (comparison.differing, comparison.parted) == (0, 0)
            assert comparison.values == sum(s.size for s in student.truth.spikes.values())
            assert len(comparison.logits_difference) == student.graph.facts.timesteps
            assert max(comparison.logits_difference) < gap * max(1.0, comparison.logits_scale)
    assert compared(student, "onnxruntime", "onnx", tmp_path, stateful=True).holds(1e-5)


NEURONS = {
    "if": NeuronConfig(name="if"),
    "plif": NeuronConfig(name="plif", tau=3.0),
    "decayed input": NeuronConfig(tau=1.7, decay_input=True, threshold=0.4),
    "reset below zero": NeuronConfig(tau=3.0, reset_value=-0.25),
}
LIBRARIES = [("nir", "snntorch"), ("nir", "spikingjelly"), ("onnx", "onnxruntime")]


@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_every_kind_of_neuron_is_mapped(
    make_student: Callable[..., Any], neuron: Any, tmp_path: Path
) -> None:
    student = make_student("residual", neuron)
    for format_name, library in [*LIBRARIES, ("safetensors", "safetensors")]:
        comparison = compared(student, library, format_name, tmp_path)
        assert comparison.holds(1e-5), library
        assert comparison.parted == 0


def test_onnx_holds_soft_resets_and_max_pools(
    make_student: Callable[..., Any], tmp_path: Path
) -> None:
    student = make_student("vgg", NeuronConfig(reset="soft"))
    assert compared(student, "onnxruntime", "onnx", tmp_path).holds(1e-5)
    assert compared(student, "onnxruntime", "onnx", tmp_path, stateful=True).holds(1e-5)
    assert compared(student, "safetensors", "safetensors", tmp_path).holds(1e-5)


def compared(
    student: Any, library: str, format_name: str, folder: Path, stateful: bool = False
) -> SpikeComparison:
    """The comparison in this process, which spares the imports of another."""
    path = folder / library
    path.write_bytes(formats.content(student.graph, format_name, stateful))
    steps = student.graph.facts.timesteps
    result = consumers.LIBRARIES[library](str(path), student.images_NCHW.numpy(), steps)
    return compare(student.truth, result.pop("logits_TNK"), result, 1e-6)


def test_frames_of_events_are_an_input_of_each_step(sew: Any, rounded: Any, tmp_path: Path) -> None:
    frames_NTCHW = torch.stack(
        [(2 * sew.images_NCHW.roll(t, -1)).round().clamp(0) for t in range(4)], 1
    )
    facts = replace(sew.graph.facts, frames="counts of a test", mean=(0.0,), std=(1 / 255,))
    graph = trace(sew.model, (1, 8, 8), facts)
    truth = record(sew.model, graph, frames_NTCHW)
    assert all(spikes.any() for spikes in truth.spikes.values())
    assert not np.array_equal(truth.logits_TNK, sew.truth.logits_TNK)
    student = replace(sew, graph=graph, images_NCHW=frames_NTCHW, truth=truth)
    for format_name, library in [*LIBRARIES, ("safetensors", "safetensors")]:
        comparison = compared(student, library, format_name, tmp_path)
        assert comparison.holds(1e-5) and comparison.parted == 0, library
    assert compared(student, "onnxruntime", "onnx", tmp_path, stateful=True).holds(1e-5)
    onnx = importlib.import_module("onnx")
    for stateful, names in ((False, [f"input/{t}" for t in range(4)]), (True, ["input"])):
        model = onnx.load_from_string(formats.content(graph, "onnx", stateful))
        inputs = [entry.name for entry in model.graph.input]
        assert [name for name in inputs if name.startswith("input")] == names
    # integer potentials: counts up to 255 bound what reads them
    whole = rounded(student, 8)
    fixed = fixed_point.fixed_point(whole.graph)
    rule = fixed_point.run_fixed(fixed, frames_NTCHW)
    (tmp_path / "integers").write_bytes(fixed_point.integer_content(fixed, False, ""))
    found = consumers.onnx_in_onnxruntime(str(tmp_path / "integers"), frames_NTCHW.numpy(), 4)
    assert compare(rule, found.pop("logits_TNK"), found, 1e-5).holds(1e-5)


@pytest.mark.parametrize("library", ["spikingjelly", "onnxruntime", "safetensors"])
def test_weights_in_channels_last_are_written_in_order(
    residual: Any, library: str, tmp_path: Path
) -> None:
    model = copy.deepcopy(residual.model).to(memory_format=torch.channels_last)
    graph = trace(model, (1, 8, 8), residual.graph.facts)
    format_name = {"spikingjelly": "nir", "onnxruntime": "onnx"}.get(library, library)
    student = replace(residual, model=model, graph=graph)
    assert compared(student, library, format_name, tmp_path).holds(1e-5)


def test_a_file_of_other_weights_or_of_none_is_caught(
    residual: Any, sew: Any, tmp_path: Path
) -> None:
    comparison = compared(
        replace(residual, graph=sew.graph), "safetensors", "safetensors", tmp_path
    )
    assert comparison.differing > 0
    assert not comparison.holds(1e-5)
    with pytest.raises(ExportError, match="safetensors can't run the exported file"):
        verify.verify(b"not a file", "safetensors", residual.truth, residual.images_NCHW)


def test_the_programs_import_nothing_of_tser() -> None:
    tree = ast.parse(Path(consumers.__file__).read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert names
    assert [name for name in names if name.startswith("tser")] == []


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_version", lambda name: None if name == "nirtorch" else "1.0")
    assert verify.missing_packages("nir") == ["nirtorch"]
    assert verify.missing_packages("onnx") == []


def test_the_record_leaves_the_student_as_it_was(residual: Any) -> None:
    record(residual.model, residual.graph, residual.images_NCHW[:2])
    assert {weight.dtype for weight in residual.model.parameters()} == {torch.float32}
    assert not any(module._forward_hooks for module in residual.model.modules())


def test_charges_follow_the_equations_by_hand() -> None:
    x_T = np.array([[0.6], [0.8], [0.3]])
    neuron = Neuron("a", ("b",), (1,), "lif", 0.5, 1.0, 1.0, 0.0)
    # 0.6; 0.3 + 0.8 fires and resets; 0.3
    assert charges(x_T, neuron)[:, 0] == pytest.approx([0.6, 1.1, 0.3])
    # soft: 1.1 - 1 = 0.1 is left, halved, plus 0.3
    assert charges(x_T, replace(neuron, reset=None))[:, 0] == pytest.approx([0.6, 1.1, 0.35])


TIE = 1e-9


def make_truth(distance: float = 0.5) -> Recording:
    """Two layers of three neurons, two steps, two images; nothing fires."""
    spikes = {name: np.zeros((2, 2, 3), dtype=bool) for name in ("a", "b")}
    far = {name: np.full((2, 2, 3), distance, dtype=np.float32) for name in spikes}
    return Recording(np.zeros((2, 2, 4)), spikes, far)


def flipped(truth: Recording, *places: tuple[str, int, int, int]) -> dict[str, np.ndarray]:
    spikes = {name: values.copy() for name, values in truth.spikes.items()}
    for name, t, n, neuron in places:
        spikes[name][t, n, neuron] = True
    return spikes


def test_equal_runs_hold() -> None:
    truth = make_truth()
    comparison = compare(truth, truth.logits_TNK, truth.spikes, TIE)
    assert comparison.holds(1e-5)
    assert (comparison.values, comparison.differing, comparison.ties) == (24, 0, 0)
    assert comparison.least_distance == 0.5


def test_a_differing_spike_is_counted_in_its_layer_and_ends_its_image() -> None:
    truth = make_truth()
    spikes = flipped(truth, ("b", 0, 1, 2), ("a", 1, 1, 0), ("a", 1, 1, 1))
    comparison = compare(truth, truth.logits_TNK, spikes, TIE)
    assert [layer.differing for layer in comparison.layers] == [0, 1]
    assert comparison.parted == 1
    assert not comparison.holds(1e-5)


def test_a_difference_at_a_tie_is_forgiven_and_so_is_what_follows_in_that_image() -> None:
    truth = make_truth()
    truth.distance["a"][0, 1, 2] = 1e-12
    spikes = flipped(truth, ("a", 0, 1, 2), ("b", 0, 1, 0), ("b", 1, 1, 0))
    logits = truth.logits_TNK.copy()
    logits[:, 1] = 9.0
    comparison = compare(truth, logits, spikes, TIE)
    assert (comparison.differing, comparison.ties, comparison.parted) == (0, 1, 1)
    assert comparison.logits_difference == (0.0, 0.0)
    assert comparison.holds(1e-5)
    # one beside it is not
    spikes = flipped(truth, ("a", 0, 1, 2), ("a", 0, 1, 1))
    assert compare(truth, truth.logits_TNK, spikes, TIE).differing == 1
    # where every image parts nothing was shown
    truth = make_truth(distance=1e-12)
    spikes = flipped(truth, ("a", 0, 0, 0), ("a", 0, 1, 0))
    comparison = compare(truth, truth.logits_TNK, spikes, TIE)
    assert comparison.differing == 0
    assert not comparison.holds(1e-5)


@pytest.mark.parametrize(("scale", "holds"), [(1.0, False), (100.0, True)])
def test_logits_agree_relative_to_the_largest(scale: float, holds: bool) -> None:
    truth = make_truth()
    truth.logits_TNK[:, :, 0] = scale
    comparison = compare(truth, truth.logits_TNK + 1e-4, truth.spikes, TIE)
    assert comparison.logits_difference == pytest.approx((1e-4, 1e-4))
    assert comparison.holds(1e-5) is holds


def test_another_prediction_or_no_number_does_not_hold() -> None:
    truth = make_truth()
    logits = truth.logits_TNK.copy()
    logits[:, 0, 1] = 1e-6
    comparison = compare(truth, logits, truth.spikes, TIE)
    assert comparison.predictions_differing == 1
    assert not comparison.holds(1e-5)
    logits = truth.logits_TNK.copy()
    logits[1, 0, 0] = np.nan  # in another step than the first
    assert not compare(truth, logits, truth.spikes, TIE).holds(1e-5)


def test_layers_without_a_spike_are_told_and_a_missing_one_is_refused() -> None:
    truth = make_truth()
    truth.spikes["b"][0, 0, 0] = True
    assert compare(truth, truth.logits_TNK, truth.spikes, TIE).silent == ("a",)
    with pytest.raises(ValueError, match="no spikes of b"):
        compare(truth, truth.logits_TNK, {"a": truth.spikes["a"]}, TIE)
