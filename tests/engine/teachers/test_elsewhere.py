"""Teachers from elsewhere: built by a function, shown images on their own scale."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tser_cli.base.errors import CheckpointError, ConfigError, TserError
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.networks import Loaded, counting_of
from tser_cli.engine.runs.teachers import (
    build_teacher,
    find_teacher,
    fitting_teacher,
    read_run_teacher,
    renormalised,
)
from tser_cli.models.base import OwnNetwork
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]
MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def of_ten_classes():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))

def of_colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))

def in_float64():
    return build().double()

class Careless(nn.Module):
    def forward(self, images):
        return {}["x"]

def careless():
    return Careless()

def ends():
    raise SystemExit(0)
"""


@pytest.fixture(autouse=True)
def _here(nothing_added: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The current folder holds the user's module."""
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def settings(make_config: MakeConfig, **changes: object) -> Config:
    named = {f"model.{key}": value for key, value in changes.items()}
    return make_config({"model.teacher": "theirs:build", **named})


def test_a_function_and_its_weights(
    tmp_path: Path, spec: DataSpec, make_config: MakeConfig
) -> None:
    weights = {"1.weight": torch.ones(3, 64), "1.bias": torch.arange(3.0)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, "w.pt")
    config = settings(make_config, teacher_weights="w.pt")
    loaded = find_teacher(config, spec, tmp_path)
    assert loaded is not None
    assert loaded.source == "theirs:build with w.pt"
    fitting_teacher(loaded, spec)
    images = torch.rand(2, 1, 8, 8)
    expected = images.sum((1, 2, 3)).unsqueeze(1) + torch.arange(3.0)
    torch.testing.assert_close(loaded.model(images), expected)
    # the same weights are the same teacher, other ones another
    assert loaded.sha256 == build_teacher(config.model).sha256
    torch.save({"1.weight": torch.zeros(3, 64), "1.bias": torch.zeros(3)}, "w.pt")
    assert loaded.sha256 != build_teacher(config.model).sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("theirs:of_ten_classes", "tells 10 classes apart, digits has 3"),
        ("theirs:of_colour", "takes 3 input channels, digits has 1"),
        ("theirs:in_float64", r"can't take the 8 x 8 images of digits \(RuntimeError: "),
        ("theirs:careless", r"can't take the 8 x 8 images of digits \(KeyError: 'x' .*theirs\.py"),
        ("theirs:ends", "--teacher theirs:ends: the function fails: SystemExit"),
        ("theirs:none", "--teacher theirs:none: theirs has no function none"),
        ("no_such_module:build", "--teacher no_such_module:build: no_such_module can't be imp"),
    ],
)
def test_a_function_that_does_not_fit(
    tmp_path: Path, spec: DataSpec, make_config: MakeConfig, name: str, message: str
) -> None:
    with pytest.raises(TserError, match=message):
        loaded = find_teacher(settings(make_config, teacher=name), spec, tmp_path)
        assert loaded is not None
        fitting_teacher(loaded, spec)


def test_weights_that_do_not_fit(tmp_path: Path, spec: DataSpec, make_config: MakeConfig) -> None:
    torch.save({"1.weight": torch.ones(3, 63), "1.bias": torch.ones(3)}, "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt does not fit the network.*63"):
        find_teacher(settings(make_config, teacher_weights="w.pt"), spec, tmp_path)


class Seen(nn.Module):
    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.flatten(1)


def test_the_teacher_s_own_normalisation(spec: DataSpec, make_config: MakeConfig) -> None:
    pixels = torch.rand(2, 1, 8, 8)
    config = settings(make_config, teacher_mean=[0.2], teacher_std=[0.4])
    loaded = Loaded(OwnNetwork(Seen(), spiking=False), "seen", "", "")
    model = renormalised(loaded, config, spec).model
    shown = (pixels - spec.mean[0]) / spec.std[0]
    torch.testing.assert_close(model(shown), ((pixels - 0.2) / 0.4).flatten(1))
    torch.testing.assert_close(model(shown, 1), ((pixels - 0.2) / 0.4).flatten(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_mean": [0.2]}, "teacher_mean and model.teacher_std go together"),
        (
            {"teacher_mean": [0.2] * 3, "teacher_std": [0.4] * 3},
            "teacher_mean has 3 numbers, the images of digits have 1",
        ),
        (
            {"teacher": "resnet20", "teacher_mean": [0.2], "teacher_std": [0.4]},
            "resnet20 is trained here, on images as the student sees them",
        ),
        (
            {"teacher": "resnet20", "teacher_weights": "w.pt"},
            "teacher_weights goes with --teacher MODULE:FUNCTION, not with resnet20",
        ),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path,
    spec: DataSpec,
    make_config: MakeConfig,
    changes: dict[str, object],
    message: str,
) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        find_teacher(settings(make_config, **changes), spec, tmp_path)


def test_its_operations_are_counted_though_it_declares_no_kinds() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model = OwnNetwork(module, spiking=False).eval()
    with torch.inference_mode(), counting_of(model, 1) as counter:
        model(torch.rand(1, 1, 8, 8))
    (layer,) = counter.counts().layers
    assert layer.layer.input_kind == "real"
    assert layer.layer.macs_formula == 64 * 3


def test_a_run_never_imports_it_by_itself(
    tmp_path: Path, spec: DataSpec, make_config: MakeConfig
) -> None:
    run = folder.create(tmp_path, "student", settings(make_config))
    run.update_environment(
        teacher={"source": "theirs:build", "model": "theirs:build", "sha256": "0"}
    )
    with pytest.raises(CheckpointError, match="built by theirs:build, code that a run never"):
        read_run_teacher(run, spec)
    assert "theirs" not in sys.modules
