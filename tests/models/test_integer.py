"""int8 inference: oneDNN's sums are the reference's, and the network's spikes its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tser_cli.models import integers
from tser_cli.models.base import Classifier
from tser_cli.models.integers import IntegerConv2d, QuantisedConv2d, norm_constants, quantise
from tser_cli.models.neurons import SpikingNeuron

Build = Callable[..., Classifier]
needs_kernels = pytest.mark.skipif(
    not integers.kernels_serve(), reason="oneDNN has no int8 convolution on this CPU"
)


def make_layer(inputs: int = 6, stride: int = 1, bits: int = 8) -> IntegerConv2d:
    source = nn.Conv2d(inputs, 10, 3, stride=stride, padding=1, bias=False)
    source.__class__ = QuantisedConv2d
    source.bits = bits
    norm = nn.BatchNorm2d(10)
    nn.init.uniform_(norm.weight, -1.0, 1.0)
    norm.train()(torch.randn(4, 10, 5, 5))
    assert isinstance(source, QuantisedConv2d)
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
    monkeypatch.setattr(integers, "kernels_serve", lambda: False)
    torch.testing.assert_close(layer(spikes), fast, rtol=1e-6, atol=1e-6)


def test_a_build_without_the_operator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(integers, "_packed", missing)
    integers.kernels_serve.cache_clear()
    assert not integers.kernels_serve()
    integers.kernels_serve.cache_clear()


def test_a_folded_norm_is_factor_and_shift() -> None:
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight, -1.0, 1.0)
    nn.init.uniform_(norm.bias)
    norm.train()(torch.randn(5, 3, 4, 4) * 3 + 1)
    x = torch.randn(2, 3, 4, 4)
    factor_C, shift_C = (values.view(-1, 1, 1) for values in norm_constants(norm))
    torch.testing.assert_close(factor_C * x + shift_C, norm.eval()(x))


def layer_inputs(model: Classifier, images: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """(input, output) of every spiking layer."""
    seen: list[tuple[torch.Tensor, ...]] = []
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.inference_mode():
        model(images, 3)
    return seen


@pytest.mark.parametrize("name", ["resnet20", "sew_resnet18", "vgg11"])
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


def test_the_image_is_convolved_in_floating_point(build_lively: Build) -> None:
    fast = integers.integer(quantise(build_lively(), 8))
    assert not fast.conv1.reads_integers
    assert fast.layer1[0].conv1.reads_integers


def test_the_network_itself_is_left_alone(build_lively: Build) -> None:
    model = quantise(build_lively(), 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    integers.integer(model)
    assert model.state_dict().keys() == before.keys()
    assert type(model.conv1) is QuantisedConv2d


def test_batches_shrink_with_the_images() -> None:
    sizes = [integers.batch_size(side, side) for side in (8, 32, 224)]
    assert sizes == [256, 16, 4]


def test_a_network_of_floats_is_returned_itself(build_lively: Build) -> None:
    model = build_lively()
    assert integers.integer(model) is model
    assert not integers.has_integer_layers(model)
    assert integers.has_integer_layers(integers.integer(quantise(model, 8)))


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
