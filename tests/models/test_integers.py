"""Weights of a few bits: integers by hand, gradients, and sums in int32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from tser_cli.base.errors import ConfigError
from tser_cli.energy.any_network.network_counter import count_operations
from tser_cli.energy.counter import counting
from tser_cli.models import integers
from tser_cli.models.base import Classifier
from tser_cli.models.integers import (
    IntegerConv2d,
    QuantisedConv2d,
    QuantisedLinear,
    best_scale,
    integers_of,
    quantise,
    quantised,
    round_weights_,
    scale_of,
)
from tser_cli.models.neurons import SpikingNeuron

Build = Callable[..., Classifier]


def test_integers_by_hand() -> None:
    weight = torch.tensor([[0.7, -0.35, 0.1], [0.0, 0.0, 0.0], [-2.1, 0.3, 0.31]])
    scale_O = scale_of(weight, 4)
    torch.testing.assert_close(scale_O, torch.tensor([0.1, 1.0, 0.3]))
    # -0.35 / 0.1 is -3.4999998 in float32
    expected = torch.tensor([[7.0, -3.0, 1.0], [0.0, 0.0, 0.0], [-7.0, 1.0, 1.0]])
    assert integers_of(weight, scale_O, 4).abs().amax() == 7
    torch.testing.assert_close(integers_of(weight, scale_O, 4), expected, rtol=0, atol=1.0)
    assert torch.equal(integers_of(weight, scale_O, 4)[2], expected[2])


@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (4, 7), (2, 1)])
def test_rounding_errs_by_half_a_step_at_most(bits: int, limit: int) -> None:
    weight = torch.randn(6, 3, 3, 3)
    scale_O = scale_of(weight, bits)
    assert integers_of(weight, scale_O, bits).abs().amax() == limit
    error = (quantised(weight, bits) - weight).abs().flatten(1).amax(1)
    assert bool((error <= scale_O * 0.5001).all())


def test_gradients_pass_the_rounding() -> None:
    weight = torch.randn(4, 5, requires_grad=True)
    (quantised(weight, 8) * torch.arange(5.0)).sum().backward()
    assert torch.equal(weight.grad, torch.arange(5.0).expand(4, 5))


def test_float64_copies_have_the_same_integers() -> None:
    weight = torch.randn(64, 100)
    single, double = (integers_of(w, scale_of(w, 8), 8) for w in (weight, weight.double()))
    assert torch.equal(single, double)
    assert quantised(weight.double(), 8).dtype == torch.float64


def test_the_best_scale_errs_less_than_the_widest() -> None:
    weight = torch.randn(8, 400)
    widest_O, best_O = scale_of(weight, 4), best_scale(weight, 4)

    def error(scale_O: torch.Tensor) -> torch.Tensor:
        rounded = integers_of(weight, scale_O, 4) * scale_O[:, None]
        return (rounded - weight).square().sum(1)

    assert bool((error(best_O) <= error(widest_O)).all())
    assert float(error(best_O).sum()) < 0.9 * float(error(widest_O).sum())


def test_a_quantised_network_keeps_parameters_and_names(build_lively: Build) -> None:
    model = build_lively()
    before = copy.deepcopy(model.state_dict())
    quantise(model, 4)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(isinstance(layer, QuantisedConv2d | QuantisedLinear) for layer in layers)
    # the first and the last layer keep eight bits
    assert [layer.bits for layer in layers] == [8, *[4] * (len(layers) - 2), 8]
    with counting(model, model.input_kinds()) as counter:
        model(torch.randn(1, 1, 8, 8), timesteps=2)
    facts = [layer.layer for layer in counter.counts().layers]
    assert {layer.weight_bytes for layer in facts} == {1}
    named = [model.get_submodule(layer.name) for layer in facts]
    assert [layer.weight_bits for layer in facts] == [layer.bits for layer in named]
    assert [layer.fan_in for layer in facts] == [layer.weight[0].numel() for layer in named]
    with torch.no_grad(), count_operations(model, "inside", 2) as by_trial:
        model(torch.randn(1, 1, 8, 8), timesteps=2)
    alike = [(one.layer.weight_bits, one.layer.fan_in) for one in by_trial.counts().layers]
    assert alike == [(layer.weight_bits, layer.fan_in) for layer in facts]


def test_the_network_computes_with_rounded_weights(build_lively: Build) -> None:
    model = build_lively()
    by_hand = copy.deepcopy(model)
    for layer in by_hand.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data = quantised(layer.weight.detach(), 8)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(quantise(model, 8)(images, 3), by_hand(images, 3))


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_weights_stay_under_rounding(build_lively: Build, bits: int) -> None:
    model = quantise(build_lively(), bits)
    round_weights_(model)
    for layer in model.modules():
        if isinstance(layer, QuantisedConv2d | QuantisedLinear):
            again = quantised(layer.weight.detach(), layer.bits)
            torch.testing.assert_close(again, layer.weight.detach(), rtol=1e-6, atol=0)


def test_weights_that_would_stay_floats_are_refused(build_lively: Build) -> None:
    model = build_lively("resnet20")
    model.body_extra = nn.ConvTranspose2d(2, 2, 3)
    assert quantise(model, 32) is model
    with pytest.raises(ConfigError, match=r"body_extra \(ConvTranspose2d\) has weights that can't"):
        quantise(model, 8)


needs_kernels = pytest.mark.skipif(
    not integers.kernels_serve(), reason="oneDNN has no int8 convolution on this CPU"
)


def make_layer(inputs: int = 6, stride: int = 1) -> IntegerConv2d:
    source = nn.Conv2d(inputs, 10, 3, stride=stride, padding=1, bias=False)
    source.__class__ = QuantisedConv2d
    source.bits = 8
    norm = nn.BatchNorm2d(10)
    nn.init.uniform_(norm.weight, -1.0, 1.0)
    norm.train()(torch.randn(4, 10, 5, 5))
    return IntegerConv2d(source, norm.eval(), reads_integers=True)


@needs_kernels
@pytest.mark.parametrize("largest", [1, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_kernel_sums_the_reference_s_integers(stride: int, largest: int) -> None:
    layer = make_layer(inputs=64, stride=stride)
    layer.scale_O.fill_(1.0)
    layer.bias.data.zero_()
    spikes = torch.randint(0, largest + 1, (3, 64, 9, 7)).float()
    assert torch.equal(layer(spikes), layer.accumulated(spikes))


@needs_kernels
def test_without_the_kernel_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer()
    spikes = torch.randint(0, 2, (2, 6, 8, 8)).float()
    fast = layer(spikes)
    integers.kernels_serve.cache_clear()
    monkeypatch.setattr(integers, "_packed", Mock(side_effect=RuntimeError("no kernel")))
    assert not integers.kernels_serve()
    torch.testing.assert_close(layer(spikes), fast, rtol=1e-6, atol=1e-6)
    integers.kernels_serve.cache_clear()


def layer_inputs(model: Classifier, images: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """(input, output) of every spiking layer."""
    seen: list[tuple[torch.Tensor, ...]] = []
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.inference_mode():
        model(images, 3)
    return seen


@pytest.mark.parametrize("name", ["resnet20", "sew_resnet20", "vgg11"])
def test_every_spike_of_a_network_is_that_of_its_float_form(build_lively: Build, name: str) -> None:
    model = quantise(build_lively(name), 8)
    images = torch.randn(2, 1, 8, 8)
    fast = integers.integer(model)
    assert sum(isinstance(module, IntegerConv2d) for module in fast.modules()) > 5
    for (x, spikes), (fast_x, fast_spikes) in zip(
        layer_inputs(model, images), layer_inputs(fast, images), strict=True
    ):
        # a spike that differs is a tie of two float32 roundings; what follows it is not compared
        if not torch.equal(spikes, fast_spikes):
            assert float((spikes != fast_spikes).float().mean()) < 1e-3
            break
        torch.testing.assert_close(fast_x, x, rtol=0, atol=1e-4)


def test_the_network_itself_is_left_alone(build_lively: Build) -> None:
    model = build_lively()
    assert integers.integer(model) is model  # of floats
    assert not integers.has_integer_layers(model)
    keys = quantise(model, 8).state_dict().keys()
    fast = integers.integer(model)
    assert integers.has_integer_layers(fast)
    assert not fast.conv1.reads_integers  # the image is convolved in floating point
    assert fast.layer1[0].conv1.reads_integers
    model.fed_counts = True  # as are counts, up to 255
    assert not integers.integer(model).conv1.reads_integers
    assert model.state_dict().keys() == keys
    assert type(model.conv1) is QuantisedConv2d


def test_batches_shrink_with_the_images() -> None:
    sizes = [integers.batch_size(side, side) for side in (8, 32, 224)]
    assert sizes == [256, 16, 4]


@pytest.mark.parametrize("mode", ["reflect", "same"])
def test_other_padding_keeps_its_rounded_floats(build_lively: Build, mode: str) -> None:
    model = build_lively("resnet20")
    block = model.get_submodule("layer1.0")
    block.conv1 = (
        nn.Conv2d(16, 16, 3, padding="same", bias=False)
        if mode == "same"
        else nn.Conv2d(16, 16, 3, padding=1, bias=False, padding_mode="reflect")
    )
    model = quantise(model, 8).eval()
    found = integers.integer(model)
    assert type(found.get_submodule("layer1.0.conv1")) is QuantisedConv2d
    assert isinstance(found.get_submodule("layer1.0.conv2"), IntegerConv2d)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(found(images, 2), model(images, 2))
