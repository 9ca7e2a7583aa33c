"""Weights from elsewhere: recognised whatever wraps them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.engine.conftest import SPEC
from tser_cli.base.errors import CheckpointError
from tser_cli.engine.runs import networks, own_modules
from tser_cli.engine.runs.weights import unwrapped
from tser_cli.models.base import Classifier, build_model


def network(classes: int = 3, channels: int = 1, stem: str = "auto") -> Classifier:
    return build_model(
        "resnet20", channels=channels, height=8, width=8, num_classes=classes, stem=stem
    )


@pytest.mark.parametrize("prefix", ["", "model.", "model.net.", "module._orig_mod."])
def test_safetensors_whatever_wraps_the_names(tmp_path: Path, prefix: str) -> None:
    theirs = network()
    path = tmp_path / "theirs.safetensors"
    save_file({f"{prefix}{name}": value for name, value in theirs.state_dict().items()}, path)
    loaded = networks.read(path, SPEC)
    assert loaded.name == "resnet20"
    assert torch.equal(loaded.model.state_dict()["fc.weight"], theirs.state_dict()["fc.weight"])


def test_a_prefix_of_some_names_alone_is_no_wrapper() -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert unwrapped(state).keys() == state.keys()


def test_a_training_script_s_file_without_the_norms_counters(tmp_path: Path) -> None:
    state = network().state_dict()
    kept = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save({"epoch": 3, "weights": kept}, tmp_path / "theirs.pt")
    assert networks.read(tmp_path / "theirs.pt", SPEC).name == "resnet20"


def test_another_stem_is_recognised(tmp_path: Path) -> None:
    torch.save(network(stem="large").state_dict(), tmp_path / "theirs.pt")
    loaded = networks.read(tmp_path / "theirs.pt", SPEC)
    assert loaded.model.state_dict()["conv1.weight"].shape[-1] == 7


@pytest.mark.parametrize("change", ["classes", "names", "shapes"])
def test_weights_of_no_network_of_ours(tmp_path: Path, change: str) -> None:
    theirs = network(classes=10) if change == "classes" else network()
    if change == "names":
        theirs.extra = nn.Linear(2, 2)
    if change == "shapes":
        theirs.bn1 = nn.BatchNorm2d(5)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError) as refused:
        networks.read(tmp_path / "theirs.pt", SPEC)
    said = str(refused.value)
    assert f"weights ({', '.join(list(theirs.state_dict())[:3])}, ...)" in said
    assert "no network of ours for digits: 1 channels, 3 classes" in said
    assert "--teacher MODULE:FUNCTION --teacher-weights FILE" in said


def test_a_pickled_module_is_refused_in_plain_words(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError) as refused:
        networks.read(tmp_path / "whole.pt", SPEC)
    told = str(refused.value)
    assert "a pickled object, made of torch.nn.modules.container.Sequential" in told
    assert "torch.save(network.state_dict(), FILE)" in told
    assert "\x1b" not in told
    assert "weights_only" not in told


@pytest.mark.parametrize("name", ["w.nir", "w.pt", "w.safetensors"])
def test_a_file_for_other_programs_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90))
    with pytest.raises(CheckpointError, match=r"tser writes NIR and does not read it\. Give a run"):
        own_modules.load_weights(nn.Linear(4, 3), tmp_path / name)


def checkpoint(path: Path, **more: object) -> nn.Module:
    """Save a linear layer as a checkpoint does: behind the optimizer's tensors, and other parts."""
    theirs = nn.Linear(4, 2)
    parts = {"optimizer": {"step": torch.zeros(3)}, "net": theirs.state_dict(), **more}
    torch.save(parts, path)
    return theirs


def test_the_part_of_a_checkpoint_that_fits_is_taken(tmp_path: Path) -> None:
    theirs, ours = checkpoint(tmp_path / "w.pt", ema=nn.Linear(5, 2).state_dict()), nn.Linear(4, 2)
    own_modules.load_weights(ours, tmp_path / "w.pt")
    assert torch.equal(ours.weight, theirs.get_parameter("weight"))


def test_parts_of_a_checkpoint_that_fit_alike_are_named(tmp_path: Path) -> None:
    average, ours = nn.Linear(4, 2), nn.Linear(4, 2)
    checkpoint(tmp_path / "w.pt", model={"module": {"ema": average.state_dict()}})
    with pytest.raises(CheckpointError, match=r"net, model\.module\.ema; name one .*w\.pt::net"):
        own_modules.load_weights(ours, tmp_path / "w.pt")
    own_modules.load_weights(ours, Path(f"{tmp_path / 'w.pt'}::model.module.ema"))
    assert torch.equal(ours.weight, average.weight)
    with pytest.raises(CheckpointError, match="no state dict ema; it has optimizer, net"):
        own_modules.load_weights(ours, Path(f"{tmp_path / 'w.pt'}::ema"))


def test_a_checkpoint_of_which_nothing_fits_says_what_is_missing(tmp_path: Path) -> None:
    checkpoint(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="does not fit the network"):
        own_modules.load_weights(nn.Linear(7, 2), tmp_path / "w.pt")


@pytest.mark.parametrize(
    "odd",
    [
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, 2, device="meta"),
        torch.ones(2, 2, dtype=torch.complex64),
    ],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_that_are_no_plain_numbers(tmp_path: Path, odd: torch.Tensor) -> None:
    path = tmp_path / "theirs.pt"
    torch.save({"weight": odd, "bias": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="weight is no plain tensor"):
        own_modules.load_weights(nn.Linear(2, 2), path)
