"""Weights of a few bits: integers by hand, gradients, and what stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tser_cli.base.errors import ConfigError
from tser_cli.energy.counter import counting
from tser_cli.models.base import Classifier
from tser_cli.models.integers import (
    QuantisedConv2d,
    QuantisedLinear,
    best_scale,
    integers_of,
    quantise,
    quantised,
    round_weights_,
    scale_of,
)

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
    quantise(model, 8)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(isinstance(layer, QuantisedConv2d | QuantisedLinear) for layer in layers)


def test_the_first_and_last_layer_keep_eight_bits(build_lively: Build) -> None:
    model = quantise(build_lively(), 4)
    assert model.conv1.bits == model.fc.bits == 8
    inner = [m.bits for m in model.modules() if isinstance(m, QuantisedConv2d)][1:]
    assert set(inner) == {4}


def test_integer_weights_count_as_a_byte_each(build_lively: Build) -> None:
    model = quantise(build_lively(), 4)
    with counting(model, model.input_kinds()) as counter:
        model(torch.randn(1, 1, 8, 8), timesteps=2)
    assert {layer.layer.weight_bytes for layer in counter.counts().layers} == {1}


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
