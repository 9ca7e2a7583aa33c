"""One layer of spiking neurons against equations written out again in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tser_cli.models.neurons import Relu, SpikingNeuron, activation_factory
from tser_cli.settings.config import NeuronConfig

SETTINGS: list[dict[str, Any]] = [
    {},
    {"tau": 4.0},
    {"threshold": 0.6},
    {"reset": "soft"},
    {"reset_value": -0.3},
    {"decay_input": True},
    {"decay_input": True, "reset": "soft", "tau": 3.0},
    {"name": "if"},
    {"name": "if", "reset": "soft"},
    {"name": "plif", "tau": 3.0},
    {"name": "plif", "decay_input": True, "reset_value": 0.2},
]
# Derivatives of the surrogates as published (Neftci et al., 2019; Fang et al., 2021; Wu et al.,
# 2018; Esser et al., 2016), at membrane potential minus threshold u and alpha a.
DERIVATIVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": lambda u, a: a * torch.exp(-a * u) / (1 + torch.exp(-a * u)) ** 2,
    "atan": lambda u, a: a / 2 / (1 + (math.pi / 2 * a * u) ** 2),
    "rect": lambda u, a: a * (u.abs() < 0.5 / a),
    "piecewise_quadratic": lambda u, a: (a - a**2 * u.abs()).clamp(min=0),
}


def spike(u: Tensor, settings: NeuronConfig) -> Tensor:
    """1 where u >= 0, with the surrogate's derivative in the backward pass."""
    slope = DERIVATIVES[settings.surrogate](u.detach(), settings.surrogate_alpha)
    through = slope * (u - u.detach())
    return (u.detach() >= 0).to(u.dtype) + through


def reference(x_TN: Tensor, settings: NeuronConfig) -> Tensor:
    """The neuron's equations one step at a time."""
    rest = settings.reset_value if settings.reset == "hard" else 0.0
    v = torch.full_like(x_TN[0], rest)
    spikes = []
    for x in x_TN:
        if settings.name == "if":
            v = v + x
        elif settings.decay_input:
            v = v + (x - (v - rest)) / settings.tau
        else:
            v = v - (v - rest) / settings.tau + x
        s = spike(v - settings.threshold, settings)
        acting = s.detach() if settings.detach_reset else s
        v = (
            v * (1 - acting) + rest * acting
            if settings.reset == "hard"
            else v - settings.threshold * acting
        )
        spikes.append(s)
    return torch.stack(spikes)


def membrane_input(steps: int = 6, neurons: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return 0.8 + 1.2 * torch.randn(steps, neurons, generator=generator, dtype=torch.float64)


def layer(settings: NeuronConfig) -> SpikingNeuron:
    return SpikingNeuron(settings).double()


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_spikes_follow_the_equations(changes: dict[str, Any]) -> None:
    settings, x_TN = NeuronConfig(**changes), membrane_input()
    spikes_TN = layer(settings)(x_TN.flatten(), timesteps=6).reshape(6, -1)
    expected = reference(x_TN, settings)
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(spikes_TN, expected)


def test_lif_as_literals() -> None:
    # tau 2, threshold 1: v = 0.75, then 0.375 + 0.75 = 1.125 and a spike, and so on.
    spikes = layer(NeuronConfig())(torch.full((6,), 0.75, dtype=torch.float64), timesteps=6)
    assert spikes.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_potential_at_the_threshold_spikes(dtype: torch.dtype) -> None:
    assert layer(NeuronConfig())(torch.ones(1, dtype=dtype), timesteps=1).tolist() == [1]


@pytest.mark.parametrize("surrogate", sorted(DERIVATIVES))
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_gradients_follow_the_surrogate(surrogate: str, reset: str, detach_reset: bool) -> None:
    settings = NeuronConfig(
        surrogate=surrogate,
        surrogate_alpha=2.5,
        reset=reset,
        detach_reset=detach_reset,
    )
    weights_TN = membrane_input().cos()
    gradients = []
    for run in (
        lambda x: layer(settings)(x.flatten(), timesteps=6).reshape(6, -1),
        lambda x: reference(x, settings),
    ):
        x_TN = membrane_input().requires_grad_()
        (run(x_TN) * weights_TN).sum().backward()
        assert x_TN.grad is not None
        gradients.append(x_TN.grad)
    assert gradients[1].abs().max() > 0.1
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_the_paper_s_surrogate_is_the_default() -> None:
    # Sigmoid, alpha 4: the slope at the threshold is alpha / 4 = 1.
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    layer(NeuronConfig())(x, timesteps=1).sum().backward()
    assert x.grad is not None and x.grad.item() == pytest.approx(1.0)


def test_no_state_is_left_between_calls() -> None:
    neurons = layer(NeuronConfig())
    x_TN = membrane_input()
    first = neurons(x_TN.flatten(), timesteps=6)
    neurons(membrane_input(3, 11).flatten(), timesteps=3)
    assert torch.equal(neurons(x_TN.flatten(), timesteps=6), first)


def test_what_a_broken_off_call_left_behind_is_forgotten() -> None:
    neurons, x_TN = layer(NeuronConfig()), membrane_input()
    first = neurons(x_TN.flatten(), timesteps=6)
    neurons.node(0.5 * torch.ones_like(x_TN))
    assert torch.equal(neurons(x_TN.flatten(), timesteps=6), first)


def test_plif_learns_its_time_constant() -> None:
    neurons = layer(NeuronConfig(name="plif", tau=3.0))
    parameters = dict(neurons.named_parameters())
    assert len(parameters) == 1
    (constant,) = parameters.values()
    # Fang et al., ICCV 2021: 1 / tau = sigmoid(w).
    assert 1 / torch.sigmoid(constant).item() == pytest.approx(3.0)
    neurons(membrane_input().flatten(), timesteps=6).sum().backward()
    assert constant.grad is not None and constant.grad.abs().item() > 0


@pytest.mark.parametrize("name", ["lif", "if"])
def test_other_neurons_have_no_parameters(name: str) -> None:
    assert not list(layer(NeuronConfig(name=name)).parameters())


def test_the_activation_of_an_ann_is_relu() -> None:
    relu = activation_factory(None)()
    assert isinstance(relu, Relu)
    assert relu(torch.tensor([-1.0, 0.0, 2.0]), 3).tolist() == [0.0, 0.0, 2.0]


def test_every_activation_is_a_module_of_its_own() -> None:
    make = activation_factory(NeuronConfig())
    assert make() is not make()
