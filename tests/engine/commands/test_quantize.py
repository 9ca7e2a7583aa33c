"""Integer weights for a finished student: calibration, energies, model files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tser_cli.data.base import DataSpec
from tser_cli.energy.table import float_energy
from tser_cli.engine.commands.quantize import calibrate_norms
from tser_cli.engine.runs import folder, networks
from tser_cli.engine.training.run import profile_of
from tser_cli.models.base import Classifier
from tser_cli.models.integers import QuantisedConv2d
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]


def test_calibration_measures_the_norms_again(
    spec: DataSpec, make_config: MakeConfig, wake: Callable[[Classifier], Classifier]
) -> None:
    model = wake(networks.build("resnet20", spec, make_config(), spiking=True))
    norm = model.bn1
    assert isinstance(norm, nn.BatchNorm2d)
    batches = [torch.randn(6, *spec.image_shape) for _ in range(2)]
    with torch.no_grad():
        means = [model.conv1(images).mean((0, 2, 3)) for images in batches]
    weight = model.conv1.weight.clone()
    momentum = norm.momentum
    calibrate_norms(model, iter(batches), 2)
    torch.testing.assert_close(norm.running_mean, (means[0] + means[1]) / 2)
    assert torch.equal(model.conv1.weight, weight)
    assert norm.momentum == momentum
    assert not any(module.training for module in model.modules())


def test_the_same_operations_in_floating_point() -> None:
    # 4.6 pJ a multiply-accumulate and 0.9 pJ an accumulate (Horowitz, ISSCC 2014)
    assert float_energy({"macs": 10.0, "sop_value": 100.0}) == pytest.approx(136.0)


@pytest.mark.parametrize(("bits", "profile"), [(32, "fp32"), (8, "int8"), (4, "int8")])
def test_integer_weights_are_charged_as_integers(
    make_config: MakeConfig, bits: int, profile: str
) -> None:
    config = make_config({"model.weight_bits": bits})
    assert profile_of(config).name == f"horowitz-45nm-{profile}"


def test_a_model_file_says_how_many_bits_its_weights_have(
    spec: DataSpec, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"model.weight_bits": 4})
    model = networks.build("resnet20", spec, config, spiking=True)
    path = tmp_path / "model.safetensors"
    networks.write(path, model, "resnet20", spec, config)
    again = networks.read(path, spec).model
    bits = [layer.bits for layer in again.modules() if isinstance(layer, QuantisedConv2d)]
    assert bits[0] == 8
    assert set(bits[1:]) == {4}
    images = torch.randn(2, *spec.image_shape)
    assert torch.equal(model.eval()(images, 2), again.eval()(images, 2))


def test_a_teacher_keeps_floating_point_weights(spec: DataSpec, make_config: MakeConfig) -> None:
    config = make_config({"model.weight_bits": 8})
    teacher = networks.build("resnet20", spec, config, spiking=False)
    assert not any(isinstance(module, QuantisedConv2d) for module in teacher.modules())


def test_the_name_of_a_run_tells_the_bits(make_config: MakeConfig) -> None:
    name = folder.run_name("student", make_config({"model.weight_bits": 8}))
    assert "_w8_s" in name
    assert "_w" not in folder.run_name("student", make_config())
