"""The energy of a network in training: the counter's integers, with their price as gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError
from tser_cli.energy.counter import counting
from tser_cli.energy.joules import operations
from tser_cli.energy.meter import EnergyMeter
from tser_cli.models.base import Classifier, build_model
from tser_cli.models.neurons import Relu
from tser_cli.settings.config import NeuronConfig

Lively = Callable[..., Classifier]


def metered(model: Any, images_NCHW: Tensor, timesteps: int) -> tuple[Tensor, list[int]]:
    """The meter's values, and the counter's integers on the same pass."""
    meter = EnergyMeter(model, model.input_kinds())
    with counting(model, model.input_kinds()) as counter, meter:
        model(images_NCHW, timesteps)
    _, *counted = operations(counter.counts())
    return meter.take(), [int(of_TI.sum()) for of_TI in counted]


@pytest.mark.parametrize(
    ("name", "neuron", "training"),
    [
        ("resnet20", NeuronConfig(reset="soft"), False),
        ("sew_resnet20", NeuronConfig(), True),
        ("vgg11", NeuronConfig(name="if"), True),
    ],
    ids=["resnet20", "sew_resnet20", "vgg11"],
)
def test_the_value_is_the_counter_s_integer(
    lively: Lively, name: str, neuron: NeuronConfig, training: bool
) -> None:
    model = lively(name, neuron).train(training)
    value, counted = metered(model, torch.randn(3, 3, 8, 8), 3)
    assert value.dtype == torch.float64
    assert value.tolist() == counted
    assert counted[0] > counted[1] > 0 or name != "resnet20"  # 16 x 9 inputs, 32 x 9 are too many
    assert value.requires_grad


def test_strides_groups_and_bfloat16_give_the_counter_s_integer(
    small_sew: nn.Module, exact_images: Callable[[int], Tensor], lively: Lively
) -> None:
    value, counted = metered(small_sew, exact_images(5), 4)
    assert value.tolist() == counted
    assert counted[0] > 0
    model = lively("sew_resnet20").train()
    with torch.autocast("cpu", torch.bfloat16):
        value, counted = metered(model, torch.randn(4, 3, 8, 8), 2)
    assert value.tolist() == counted
    assert counted[0] > 0
    value[0].backward()
    gradient = model.get_submodule("conv1").weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_counts_of_events_are_metered_as_they_are_counted(lively: Lively) -> None:
    model = lively("sew_resnet20", channels=2).train()
    model.fed_counts = True
    frames_NTCHW = torch.randint(0, 5, (3, 2, 2, 8, 8)).float()
    value, counted = metered(model, frames_NTCHW, 2)
    assert value.tolist() == counted and value.requires_grad
    # the stem alone: 16 outputs a channel, 9 of them in the middle of the map
    assert counted[0] > 16 * 4 * int(frames_NTCHW.sum())


def test_each_input_has_its_fan_out_as_gradient() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    spikes = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]]).repeat(1, 2, 1, 1)
    spikes.requires_grad_(True)
    net = nn.Sequential(layer)
    meter = EnergyMeter(net, {"0": "sums"})
    with meter:
        net(spikes)
    value, _ = meter.take()
    # the example of docs/energy.md: so many outputs of a channel read a corner, an edge, the centre
    assert value.item() == 2 * 3 * (4 + 2 * 9)
    (0.5 * value).backward()
    fan_out = torch.tensor([[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]])
    assert torch.equal(spikes.grad, (0.5 * 3 * fan_out).expand(1, 2, 3, 3))


class Smooth(Relu):
    """A neuron without steps or jumps, in the place of a spiking one."""

    is_spiking_neuron = True

    def forward(self, x: Tensor, timesteps: int = 1) -> Tensor:
        return torch.sigmoid(4 * (x - 1))


@pytest.mark.parametrize("name", ["resnet20", "sew_resnet20"])
def test_the_gradient_is_that_of_finite_differences_through_a_smooth_surrogate(name: str) -> None:
    model = build_model(name, channels=1, height=8, width=8, num_classes=3, neuron=NeuronConfig())
    for path, module in list(model.named_modules()):
        if getattr(module, "is_spiking_neuron", False):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, Smooth())
    model.double().train()
    images, meter = torch.randn(3, 1, 8, 8).double(), EnergyMeter(model, model.input_kinds())

    def accumulates() -> Tensor:
        with meter:
            model(images, 2)
        return meter.take()[0]

    accumulates().backward()
    for path in ("conv1.weight", "layer1.1.bn2.bias", "layer3.0.downsample.0.weight"):
        weight = model.get_parameter(path)
        flat, place, step = weight.data.view(-1), weight.numel() // 2, 1e-6
        values = []
        for sign in (1, -1):
            flat[place] += sign * step
            values.append(accumulates().item())
            flat[place] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert weight.grad is not None
        assert weight.grad.view(-1)[place].item() == pytest.approx(slope, rel=1e-3)
        assert abs(slope) > 1e-3, "a weight that moves nothing would prove nothing"


def test_hooks_are_gone_outside(lively: Lively) -> None:
    model = lively("resnet20")
    meter = EnergyMeter(model, model.input_kinds())
    with pytest.raises(ZeroDivisionError), meter:
        model(torch.randn(1, 3, 8, 8), 2)
        raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in model.modules())
    model(torch.randn(1, 3, 8, 8), 2)
    with meter:
        model(torch.randn(1, 3, 8, 8), 2)
    assert meter.take()[0].item() > 0


def test_a_layer_that_did_not_run_or_ran_twice_is_named(lively: Lively) -> None:
    model = lively("resnet20")
    meter = EnergyMeter(model, model.input_kinds())
    with pytest.raises(TserError, match="did not run in this pass"):
        meter.take()
    with pytest.raises(TserError, match=r"conv1 ran .*twice in one"), meter:
        model(torch.randn(1, 3, 8, 8), 2)
        model.get_submodule("layer1.0.conv1")(torch.zeros(2, 16, 8, 8))
