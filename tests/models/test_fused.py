"""Our CPU neurons against spikingjelly's, to the last bit, and against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tser_cli.models import neurons
from tser_cli.models.base import Classifier
from tser_cli.models.neurons import SpikingNeuron, make_node
from tser_cli.settings.config import NeuronConfig

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
]
LEFT: list[dict[str, Any]] = [
    {"backend": "spikingjelly"},
    {"name": "plif"},
    {"tau": 3.0},
    {"tau": 4.0},
    {"decay_input": True},
    {"reset_value": -0.1},
    {"surrogate": "atan"},
]


def membrane_input(steps: int = 6, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 0.6 + 1.2 * torch.randn(steps, *(shape or (5000,)), generator=generator)


def constants(settings: NeuronConfig) -> neurons.Constants:
    served = neurons.constants(settings)
    assert served is not None
    return served


@pytest.mark.parametrize("changes", SERVED, ids=str)
def test_what_is_served(changes: dict[str, Any]) -> None:
    assert neurons.constants(NeuronConfig(**changes)) is not None


@pytest.mark.parametrize("changes", LEFT, ids=str)
def test_what_is_left_to_spikingjelly(changes: dict[str, Any]) -> None:
    assert neurons.constants(NeuronConfig(**changes)) is None


def test_only_fp32_and_bf16_on_a_cpu_are_served() -> None:
    assert neurons.serves(torch.zeros(1))
    assert neurons.serves(torch.zeros(1, dtype=torch.bfloat16))
    assert not neurons.serves(torch.zeros(1, dtype=torch.float64))
    assert not neurons.serves(torch.zeros(1, dtype=torch.float16))
    assert not neurons.serves(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("changes", SERVED, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_potentials_and_spikes_are_spikingjelly_s(changes: dict[str, Any], grad: bool) -> None:
    settings = NeuronConfig(**changes)
    node = make_node(settings)
    node.store_v_seq = True
    x_TN = membrane_input().requires_grad_(grad)
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
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gradients_are_spikingjelly_s(changes: dict[str, Any], steps: int) -> None:
    weights_TN = membrane_input(steps).sin()
    gradients = []
    for backend in ("auto", "spikingjelly"):
        neurons = SpikingNeuron(NeuronConfig(**{**changes, "backend": backend}))
        x_TN = membrane_input(steps).requires_grad_()
        (neurons(x_TN.flatten(), timesteps=steps).reshape(steps, -1) * weights_TN).sum().backward()
        assert x_TN.grad is not None
        gradients.append(x_TN.grad)
    assert gradients[1].abs().max() > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


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
    assert half_TN.grad is not None and full_TN.grad is not None
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


def test_pieces_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    served, results = constants(NeuronConfig()), []
    for piece in (2**18, 1024):
        monkeypatch.setattr(neurons, "PIECE", piece)
        x_TN = membrane_input(3, 4096).requires_grad_()
        spikes_TN = neurons.spikes_of(x_TN, served)
        (spikes_TN * membrane_input(3, 4096).sin()).sum().backward()
        results.append((spikes_TN, x_TN.grad))
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
    assert x.grad is not None and x.grad.tolist() == pytest.approx([first, second], rel=1e-5)


def test_the_input_is_left_as_it_was() -> None:
    x_TN = membrane_input().requires_grad_()
    before = x_TN.detach().clone()
    neurons.spikes_of(x_TN, constants(NeuronConfig())).sum().backward()
    assert torch.equal(x_TN.detach(), before)


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
        assert x.grad is not None and inputs[0].grad is not None
        assert torch.equal(x.grad, inputs[0].grad)
    assert spikes[1].stride() == strided.stride()


@pytest.mark.parametrize("name", ["resnet20", "sew_resnet18", "vgg11"])
@torch.no_grad()
def test_a_network_gives_the_same_bits_with_either(build_lively: Build, name: str) -> None:
    ours = build_lively(name)
    theirs = build_lively(name, neuron=NeuronConfig(backend="spikingjelly"))
    theirs.load_state_dict(ours.state_dict())
    images_NCHW = torch.randn(4, 1, 8, 8)
    logits_TNK = ours(images_NCHW, timesteps=4)
    assert torch.equal(logits_TNK, theirs(images_NCHW, timesteps=4))
    assert not torch.equal(logits_TNK[0], logits_TNK[-1])


def test_training_a_network_is_the_same_with_either(build: Build) -> None:
    gradients = []
    images_NCHW = torch.randn(8, 1, 8, 8)
    for backend in ("auto", "spikingjelly"):
        torch.manual_seed(1)
        model = build(neuron=NeuronConfig(backend=backend))
        logits_TNK = model(images_NCHW, timesteps=3)
        torch.nn.functional.cross_entropy(logits_TNK.mean(0), torch.arange(8)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(grad is not None for grad in gradients[0].values())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
