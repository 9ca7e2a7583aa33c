"""Weights from elsewhere: recognised whatever wraps them, or told what they are instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tser_cli.base.errors import CheckpointError
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.weights import unwrapped
from tser_cli.models.base import Classifier, build_model


def network(classes: int = 3, channels: int = 1, stem: str = "auto") -> Classifier:
    return build_model(
        "resnet20", channels=channels, height=8, width=8, num_classes=classes, stem=stem
    )


def refusal(model: nn.Module, spec: DataSpec, folder: Path) -> str:
    torch.save(model.state_dict(), folder / "theirs.pt")
    with pytest.raises(CheckpointError) as refused:
        networks.read(folder / "theirs.pt", spec)
    return str(refused.value)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_safetensors_whatever_wraps_the_names(tmp_path: Path, spec: DataSpec, prefix: str) -> None:
    theirs = network()
    path = tmp_path / "theirs.safetensors"
    save_file({f"{prefix}{name}": value for name, value in theirs.state_dict().items()}, path)
    loaded = networks.read(path, spec)
    assert loaded.name == "resnet20"
    assert torch.equal(loaded.model.state_dict()["fc.weight"], theirs.state_dict()["fc.weight"])


def test_a_prefix_of_some_names_alone_is_no_wrapper() -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert unwrapped(state).keys() == state.keys()


def test_a_training_script_s_file_without_the_norms_counters(
    tmp_path: Path, spec: DataSpec
) -> None:
    state = network().state_dict()
    kept = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save({"epoch": 3, "weights": kept}, tmp_path / "theirs.pt")
    assert networks.read(tmp_path / "theirs.pt", spec).name == "resnet20"


def test_another_stem_is_recognised(tmp_path: Path, spec: DataSpec) -> None:
    torch.save(network(stem="large").state_dict(), tmp_path / "theirs.pt")
    loaded = networks.read(tmp_path / "theirs.pt", spec)
    assert loaded.model.state_dict()["conv1.weight"].shape[-1] == 7


def test_the_nearest_network_and_what_differs(tmp_path: Path, spec: DataSpec) -> None:
    told = refusal(network(classes=10, channels=3, stem="large"), spec, tmp_path)
    assert "resnet20" in told
    assert "comes closest" in told
    assert "it tells 10 classes apart, not 3; it takes 3 input channels, not 1" in told
    assert "--teacher MODULE:FUNCTION --teacher-weights FILE" in told
    assert "fc.weight is" not in told  # said in words already


def test_names_and_shapes_that_differ(tmp_path: Path, spec: DataSpec) -> None:
    theirs = network()
    theirs.extra = nn.Linear(2, 2)
    del theirs.fc
    theirs.bn1 = nn.BatchNorm2d(5)
    told = refusal(theirs, spec, tmp_path)
    assert "missing: fc.weight, fc.bias" in told
    assert "unexpected: extra.weight, extra.bias" in told
    assert "other shapes: bn1.weight is (5,), not (16,)" in told
    assert "and 1 more" in told


def test_a_pickled_module_is_refused_in_plain_words(tmp_path: Path, spec: DataSpec) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError) as refused:
        networks.read(tmp_path / "whole.pt", spec)
    told = str(refused.value)
    assert "a pickled object, made of torch.nn.modules.container.Sequential" in told
    assert "torch.save(network.state_dict(), FILE)" in told
    assert "\x1b" not in told
    assert "weights_only" not in told
