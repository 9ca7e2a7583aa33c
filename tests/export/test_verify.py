"""Exported students give the same spikes in other libraries, each in a process of its own."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tser_cli.base.errors import ExportError
from tser_cli.export import consumers, formats, verify
from tser_cli.export.graph import trace
from tser_cli.export.verify import Check, Comparison, compare
from tser_cli.settings.config import NeuronConfig

STUDENTS = ["residual", "sew"]


def checked(student: Any, format_name: str, stateful: bool = False) -> tuple[Check, ...]:
    content = formats.content(student.graph, format_name, stateful)
    return verify.verify(content, format_name, student.truth, student.images_NCHW)


@pytest.mark.parametrize("student", STUDENTS, indirect=True)
def test_the_students_spike_in_every_layer(student: Any) -> None:
    assert all(0 < spikes.sum() < spikes.size for spikes in student.truth.spikes.values())


@pytest.mark.parametrize("student", STUDENTS, indirect=True)
def test_snntorch_and_spikingjelly_give_every_spike_of_a_nir_file(student: Any) -> None:
    checks = checked(student, "nir")
    assert [check.target.library for check in checks] == ["snntorch", "spikingjelly"]
    for check in checks:
        comparison = check.comparison
        assert check.holds
        assert (comparison.differing, comparison.parted) == (0, 0)
        assert comparison.values == sum(s.size for s in student.truth.spikes.values())
        assert max(comparison.logits_difference) < 1e-10


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("student", STUDENTS, indirect=True)
def test_onnxruntime_gives_the_logits_of_every_step(student: Any, stateful: bool) -> None:
    (check,) = checked(student, "onnx", stateful)
    assert check.holds
    assert check.comparison.differing == 0
    assert len(check.comparison.logits_difference) == student.graph.facts.timesteps


@pytest.mark.parametrize("student", STUDENTS, indirect=True)
def test_a_safetensors_file_says_enough_to_compute_the_network(student: Any) -> None:
    (check,) = checked(student, "safetensors")
    assert check.holds


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
) -> Comparison:
    """The comparison in this process, which spares the imports of another."""
    path = folder / library
    path.write_bytes(formats.content(student.graph, format_name, stateful))
    steps = student.graph.facts.timesteps
    result = consumers.LIBRARIES[library](str(path), student.images_NCHW.numpy(), steps)
    return compare(student.truth, result.pop("logits_TNK"), result, 1e-6)


def compared_in_snntorch(student: Any, path: Path, reset: str) -> Comparison:
    path.write_bytes(formats.content(student.graph, "nir", False))
    steps = student.graph.facts.timesteps
    result = consumers.nir_in_snntorch(str(path), student.images_NCHW.numpy(), steps, reset)
    return compare(student.truth, result.pop("logits_TNK"), result, 1e-9)


@pytest.mark.parametrize("library", ["spikingjelly", "onnxruntime", "safetensors"])
def test_weights_in_channels_last_are_written_in_order(
    residual: Any, library: str, tmp_path: Path
) -> None:
    model = copy.deepcopy(residual.model).to(memory_format=torch.channels_last)
    graph = trace(model, (1, 8, 8), residual.graph.facts)
    format_name = {"spikingjelly": "nir", "onnxruntime": "onnx"}.get(library, library)
    student = replace(residual, model=model, graph=graph)
    assert compared(student, library, format_name, tmp_path).holds(1e-5)


@pytest.mark.parametrize("student", STUDENTS, indirect=True)
def test_a_wrong_mapping_is_caught(student: Any, tmp_path: Path) -> None:
    assert compared_in_snntorch(student, tmp_path / "file.nir", "zero").holds(1e-5)
    wrong = compared_in_snntorch(student, tmp_path / "file.nir", "subtract")
    assert wrong.differing > 0
    assert not wrong.holds(1e-5)


def test_a_file_of_other_weights_is_caught(residual: Any, sew: Any) -> None:
    other = formats.content(sew.graph, "safetensors", False)
    (check,) = verify.verify(other, "safetensors", residual.truth, residual.images_NCHW)
    assert check.comparison.differing > 0
    assert not check.holds


def test_a_file_that_can_t_be_read_names_the_library(residual: Any) -> None:
    with pytest.raises(ExportError, match="safetensors can't run the exported file"):
        verify.verify(b"not a file", "safetensors", residual.truth, residual.images_NCHW)


def test_the_programs_import_nothing_of_tser() -> None:
    tree = ast.parse(Path(consumers.__file__).read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert names
    assert [name for name in names if name.startswith("tser")] == []


def test_the_description_of_a_check_is_complete(residual: Any) -> None:
    (check,) = checked(residual, "safetensors")
    described = check.described()
    assert described["holds"] is True
    assert described["versions"].keys() == {"safetensors", "torch"}
    assert len(described["layers"]) == len(residual.truth.spikes)
    assert described["values"] == sum(np.size(s) for s in residual.truth.spikes.values())


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_version", lambda name: None if name == "nirtorch" else "1.0")
    assert verify.missing_packages("nir") == ["nirtorch"]
    assert verify.missing_packages("onnx") == []
