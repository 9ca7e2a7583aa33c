"""Layers of spiking neurons against their equations, spikingjelly's, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tser_cli.models import neurons
from tser_cli.models.base import Classifier
from tser_cli.models.neurons import Relu, SpikingNeuron, activation_factory, make_node
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


def membrane_input(steps: int = 6, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 0.6 + 1.2 * torch.randn(steps, *(shape or (5000,)), generator=generator, dtype=dtype)


def double_input(steps: int = 6, neurons: int = 40) -> Tensor:
    return membrane_input(steps, neurons).double()


def layer(settings: NeuronConfig) -> SpikingNeuron:
    return SpikingNeuron(settings).double()


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_spikes_follow_the_equations(changes: dict[str, Any]) -> None:
    settings, x_TN = NeuronConfig(**changes), double_input()
    spikes_TN = layer(settings)(x_TN.flatten(), timesteps=6).reshape(6, -1)
    expected = reference(x_TN, settings)
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(spikes_TN, expected)


def test_lif_as_literals() -> None:
    # tau 2, threshold 1: v = 0.75, then 0.375 + 0.75 = 1.125 and a spike, and so on.
    spikes = layer(NeuronConfig())(torch.full((6,), 0.75, dtype=torch.float64), timesteps=6)
    assert spikes.tolist() == [0, 1, 0, 1, 0, 1]
    for dtype in (torch.float32, torch.float64):  # at the threshold it spikes
        x = torch.ones(1, dtype=dtype, requires_grad=True)
        spikes = layer(NeuronConfig())(x, timesteps=1)
        assert spikes.tolist() == [1]
        spikes.sum().backward()
        # sigmoid, alpha 4, is the default: the slope at the threshold is alpha / 4 = 1
        assert x.grad.item() == pytest.approx(1.0)


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
    weights_TN = double_input().cos()
    gradients = []
    for run in (
        lambda x: layer(settings)(x.flatten(), timesteps=6).reshape(6, -1),
        lambda x: reference(x, settings),
    ):
        x_TN = double_input().requires_grad_()
        (run(x_TN) * weights_TN).sum().backward()
        gradients.append(x_TN.grad)
    assert gradients[1].abs().max() > 0.1
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_no_state_is_left_between_calls() -> None:
    neurons, x_TN = layer(NeuronConfig()), double_input()
    first = neurons(x_TN.flatten(), timesteps=6)
    neurons(double_input(3, 11).flatten(), timesteps=3)
    assert torch.equal(neurons(x_TN.flatten(), timesteps=6), first)
    neurons.node(0.5 * torch.ones_like(x_TN))  # as a call that was broken off leaves it
    assert torch.equal(neurons(x_TN.flatten(), timesteps=6), first)


def test_plif_alone_learns_its_time_constant() -> None:
    neurons = layer(NeuronConfig(name="plif", tau=3.0))
    (constant,) = neurons.parameters()
    # Fang et al., ICCV 2021: 1 / tau = sigmoid(w).
    assert 1 / torch.sigmoid(constant).item() == pytest.approx(3.0)
    neurons(double_input().flatten(), timesteps=6).sum().backward()
    assert constant.grad.abs().item() > 0
    for name in ("lif", "if"):
        assert not list(layer(NeuronConfig(name=name)).parameters())


def test_the_activation_of_an_ann_is_relu() -> None:
    relu = activation_factory(None)()
    assert isinstance(relu, Relu)
    assert relu(torch.tensor([-1.0, 0.0, 2.0]), 3).tolist() == [0.0, 0.0, 2.0]
    make = activation_factory(NeuronConfig())
    assert make() is not make()


Build = Callable[..., Classifier]
SERVED: list[dict[str, Any]] = [
    {},
    {"reset": "soft"},
    {"threshold": 0.7, "surrogate_alpha": 2.0},
    {"detach_reset": True},
    {"detach_reset": True, "reset": "soft", "threshold": 0.7},
    {"name": "if"},
    {"name": "if", "reset": "soft"},
    {"name": "if", "tau": 3.0, "decay_input": True},
    {"decay_input": True},
    {"decay_input": True, "reset": "soft", "detach_reset": True, "threshold": 0.4},
]
LEFT: list[dict[str, Any]] = [
    {"backend": "spikingjelly"},
    {"name": "plif"},
    {"tau": 3.0},
    {"tau": 4.0},
    {"tau": 4.0, "decay_input": True},
    {"reset_value": -0.1},
    {"surrogate": "atan"},
]


def constants(settings: NeuronConfig) -> neurons.Constants:
    return neurons.constants(settings)  # type: ignore[return-value]


def test_what_is_left_to_spikingjelly() -> None:
    for changes in LEFT:
        assert neurons.constants(NeuronConfig(**changes)) is None
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert neurons.serves(torch.zeros(1, dtype=dtype))
    assert not neurons.serves(torch.zeros(1, dtype=torch.float16))
    assert not neurons.serves(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("changes", SERVED, ids=str)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_potentials_and_spikes_are_spikingjelly_s(
    changes: dict[str, Any], grad: bool, dtype: torch.dtype
) -> None:
    settings = NeuronConfig(**changes)
    node = make_node(settings)
    node.store_v_seq = True
    # drawn in float64: numbers that fp32 holds too would not tell the two apart
    x_TN = membrane_input(dtype=dtype).requires_grad_(grad)
    expected_TN = node(x_TN)
    assert torch.equal(neurons.spikes_of(x_TN, constants(settings)), expected_TN)
    with torch.no_grad():
        spikes_TN = torch.empty_like(x_TN)
        charged_TN = torch.stack(neurons._charge(x_TN, constants(settings), spikes_TN))
        assert torch.equal(spikes_TN, expected_TN)
        # The potential after a step without a spike is the one before the reset.
        quiet = expected_TN == 0
        assert torch.equal(charged_TN[quiet], node.v_seq[quiet])
        assert 0.1 < expected_TN.mean() < 0.9


@pytest.mark.parametrize("changes", SERVED, ids=str)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_gradients_are_spikingjelly_s(
    changes: dict[str, Any], steps: int, dtype: torch.dtype, near: float
) -> None:
    weights_TN = membrane_input(steps).sin()
    gradients = []
    for backend in ("auto", "spikingjelly"):
        neurons = SpikingNeuron(NeuronConfig(**{**changes, "backend": backend}))
        x_TN = membrane_input(steps, dtype=dtype).requires_grad_()
        (neurons(x_TN.flatten(), timesteps=steps).reshape(steps, -1) * weights_TN).sum().backward()
        gradients.append(x_TN.grad)
    assert gradients[1].abs().max() > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=near, atol=near / 10)


@pytest.mark.parametrize("changes", SERVED, ids=str)
def test_bf16_input_gives_what_the_same_numbers_give_in_fp32(changes: dict[str, Any]) -> None:
    served, weights_TN = constants(NeuronConfig(**changes)), membrane_input().sin().bfloat16()
    half_TN = membrane_input().bfloat16().requires_grad_()
    full_TN = half_TN.detach().float().requires_grad_()
    spikes = [neurons.spikes_of(x_TN, served) for x_TN in (half_TN, full_TN)]
    assert spikes[0].dtype == torch.bfloat16
    assert torch.equal(spikes[0].float(), spikes[1])
    for spikes_TN in spikes:
        (spikes_TN * weights_TN).sum().backward()
    assert half_TN.grad.dtype == torch.bfloat16
    # computed in fp32 and rounded once
    assert torch.equal(half_TN.grad, full_TN.grad.bfloat16())


@pytest.mark.parametrize("changes", [{}, *LEFT], ids=str)
@pytest.mark.parametrize("streaming", [False, True])
def test_potentials_are_fp32_where_the_input_is_bf16(
    changes: dict[str, Any], streaming: bool
) -> None:
    neurons = SpikingNeuron(NeuronConfig(**changes))
    neurons.set_streaming(streaming)
    half_N = membrane_input().bfloat16().flatten()
    with torch.no_grad():
        expected_N = neurons(half_N.float(), timesteps=6)
        neurons.set_streaming(streaming)
        spikes_N = neurons(half_N, timesteps=6)
    assert spikes_N.dtype == torch.bfloat16
    assert torch.equal(spikes_N.float(), expected_N)


def test_pieces_change_no_bit_and_the_input_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served, results = constants(NeuronConfig()), []
    for piece in (2**18, 1024):
        monkeypatch.setattr(neurons, "PIECE", piece)
        x_TN = membrane_input(3, 4096).requires_grad_()
        spikes_TN = neurons.spikes_of(x_TN, served)
        (spikes_TN * membrane_input(3, 4096).sin()).sum().backward()
        results.append((spikes_TN, x_TN.grad))
        assert torch.equal(x_TN.detach(), membrane_input(3, 4096))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_gradient_by_hand() -> None:
    # Two steps, LIF, hard reset: h1 = x1, h2 = x1 (1 - s1) / 2 + x2, loss = s2; no spike at 1.
    x = torch.tensor([0.5, 0.9], requires_grad=True)
    spikes = neurons.spikes_of(x[:, None], constants(NeuronConfig()))
    spikes[1].sum().backward()

    def slope(h: float) -> float:
        sigma = 1 / (1 + math.exp(-4 * (h - 1)))
        return 4 * sigma * (1 - sigma)

    second = slope(0.25 + 0.9)
    first = second * 0.5 * (1 - 0.5 * slope(0.5))
    assert spikes.flatten().tolist() == [0.0, 1.0]
    assert x.grad.tolist() == pytest.approx([first, second], rel=1e-5)


def test_the_layout_of_the_memory_does_not_matter() -> None:
    x_TNCHW = membrane_input(3, 2, 4, 8, 8)
    strided = x_TNCHW.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    served, weights = constants(NeuronConfig()), membrane_input(3, 2, 4, 8, 8).sin()
    with_gaps = torch.stack([x_TNCHW, x_TNCHW], dim=-1)[..., 0]
    inputs = [x.detach().requires_grad_() for x in (x_TNCHW, strided, with_gaps)]
    spikes = [neurons.spikes_of(x, served) for x in inputs]
    for of in spikes:
        (of * weights).sum().backward()
    for x, of in zip(inputs[1:], spikes[1:], strict=True):
        assert torch.equal(of, spikes[0])
        assert torch.equal(x.grad, inputs[0].grad)
    assert spikes[1].stride() == strided.stride()


@pytest.mark.parametrize("name", ["resnet20", "sew_resnet20", "vgg11"])
@torch.no_grad()
def test_a_network_gives_the_same_bits_with_either(build_lively: Build, name: str) -> None:
    ours = build_lively(name)
    theirs = build_lively(name, neuron=NeuronConfig(backend="spikingjelly"))
    theirs.load_state_dict(ours.state_dict())
    images_NCHW = torch.randn(4, 1, 8, 8)
    logits_TNK = ours(images_NCHW, timesteps=4)
    assert torch.equal(logits_TNK, theirs(images_NCHW, timesteps=4))
    assert not torch.equal(logits_TNK[0], logits_TNK[-1])


def test_spikes_are_zeros_and_ones_in_bf16(build_lively: Build) -> None:
    model, found = build_lively("resnet20").train(), []
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(lambda of, args, spikes: found.append(spikes))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 1, 8, 8), timesteps=3)
    assert len(found) > 15
    for spikes in found:
        assert spikes.dtype == torch.bfloat16
        assert ((spikes == 0) | (spikes == 1)).all()
    assert any(0 < spikes.mean() < 1 for spikes in found)
