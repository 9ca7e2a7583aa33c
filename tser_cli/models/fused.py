"""LIF and IF over all time steps on a CPU in few passes, with spikingjelly's gradients.

spikingjelly's CPU reference makes some twenty passes over memory a time step; on a CPU they cost
more than the convolutions. This one makes four forward and eight backward, keeps one tensor for
backward, and gives the same spikes. On a GPU spikingjelly's fused kernels serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tser_cli.config import NeuronConfig


@dataclass(frozen=True)
class Constants:
    """Neuron constants. `leak`: what is left of the membrane potential after a step."""

    leak: float
    threshold: float
    hard: bool
    detach_reset: bool
    alpha: float


def constants(config: NeuronConfig) -> Constants | None:
    """Return the constants of a neuron that this file can serve to the last bit, else None.

    leak * v + x rounds once where spikingjelly's v - v / tau + x rounds twice; only for a leak of
    1 or 1/2 is the product exact and the sum the same. All else is left to spikingjelly, as are a
    reset to anything but 0 and other surrogates.
    """
    exact = config.name == "if" or (config.tau == 2.0 and not config.decay_input)
    hard = config.reset == "hard"
    served = config.name in ("if", "lif") and config.surrogate == "sigmoid"
    if config.backend != "auto" or not (served and exact) or (hard and config.reset_value):
        return None
    leak = 1.0 if config.name == "if" else 0.5
    return Constants(leak, config.threshold, hard, config.detach_reset, config.surrogate_alpha)


def serves(x: Tensor) -> bool:
    """Return whether `x` is of a kind that this file is written for."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def spikes_of(x_T: Tensor, neuron: Constants) -> Tensor:
    """Membrane input [T, ...] -> spikes [T, ...], differentiable by the sigmoid surrogate."""
    if torch.is_grad_enabled() and x_T.requires_grad:
        spikes: Tensor = _Spikes.apply(x_T, neuron)
        return spikes
    return _forward(x_T, neuron, keep=False)[0]


def _forward(x_T: Tensor, neuron: Constants, keep: bool) -> tuple[Tensor, Tensor]:
    """Spikes and, where `keep`, the membrane potential before each reset."""
    steps = x_T.shape[0]
    spikes_T = torch.empty_like(x_T)
    charged_T = torch.empty_like(x_T if keep else x_T[:1])
    voltage = torch.empty_like(x_T[0])
    for t in range(steps):
        charged, spikes = charged_T[t if keep else 0], spikes_T[t]
        if t:
            torch.add(x_T[t], voltage, alpha=neuron.leak, out=charged)
        else:
            charged.copy_(x_T[t])
        torch.ge(charged, neuron.threshold, out=spikes)
        if t == steps - 1:
            break
        if neuron.hard:
            torch.addcmul(charged, charged, spikes, value=-1.0, out=voltage)
        else:
            torch.add(charged, spikes, alpha=-neuron.threshold, out=voltage)
    return spikes_T, charged_T


class _Spikes(torch.autograd.Function):
    """The derivation, with h the potential before reset, g the gradient of the spikes s.

    sg = alpha sigma (1 - sigma) at alpha (h - threshold); c_t = leak gh_{t+1}, c_T = 0;
    gh_t = g_t sg + c_t dv/dh, dv/dh = (1 - s) - h sg (hard), 1 - threshold sg (soft), less the
    sg part where the reset is detached; gx_t = gh_t.
    """

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, neuron: Constants) -> Tensor:
        spikes_T, charged_T = _forward(x_T, neuron, keep=True)
        ctx.save_for_backward(charged_T)
        ctx.neuron = neuron
        return spikes_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None]:
        (charged_T,) = ctx.saved_tensors
        neuron: Constants = ctx.neuron
        grad_x_T = torch.empty_like(charged_T)
        offset = torch.tensor(-neuron.alpha * neuron.threshold)
        carry = None
        for t in range(len(charged_T) - 1, -1, -1):
            h, out = charged_T[t], grad_x_T[t]
            sigma = torch.add(offset, h, alpha=neuron.alpha).sigmoid_()
            through = grad_T[t]
            if carry is not None and not neuron.detach_reset:
                amount = h if neuron.hard else torch.tensor(neuron.threshold)
                through = torch.addcmul(through, carry, amount, value=-1.0)
            torch.ops.aten.sigmoid_backward.grad_input(through, sigma, grad_input=out)
            out.mul_(neuron.alpha)
            if carry is not None:
                out.add_(carry.mul_(h < neuron.threshold) if neuron.hard else carry)
            if t:
                carry = out * neuron.leak
        return grad_x_T, None
