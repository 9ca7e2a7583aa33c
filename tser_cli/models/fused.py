"""LIF and IF over all time steps on a CPU in few passes, with spikingjelly's gradients.

spikingjelly's CPU reference makes some twenty passes over memory a time step; on a CPU they cost
more than the convolutions. This one works on one piece of a layer at a time, which stays in the
cache from one operation to the next, keeps its input for backward, and gives the same spikes.
Input and spikes may be bf16: 0 and 1 are exact in it, and membrane potentials are fp32 all the
same. On a GPU spikingjelly's fused kernels serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tser_cli.config import NeuronConfig

SERVED = (torch.float32, torch.bfloat16)
# Values of a time step that are worked on at once, 1 MB in fp32. Measured on cores with 1 MB of L2
# cache each: smaller pieces cost calls, larger ones traffic.
PIECE = 2**18


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
    return x.device.type == "cpu" and x.dtype in SERVED


def spikes_of(x_T: Tensor, neuron: Constants) -> Tensor:
    """Membrane input [T, ...] -> spikes [T, ...], differentiable by the sigmoid surrogate."""
    if torch.is_grad_enabled() and x_T.requires_grad:
        spikes: Tensor = _Spikes.apply(x_T, neuron)
        return spikes
    return _forward(x_T, neuron)


def one_step(x: Tensor, voltage: Tensor | None, neuron: Constants) -> tuple[Tensor, Tensor]:
    """Membrane input of one step and what the last reset left -> spikes, and what is left now.

    `voltage` None: nothing came before. Not differentiable.
    """
    charged = x.float()
    if voltage is not None:
        charged = torch.add(charged, voltage, alpha=neuron.leak)
    fired = torch.ge(charged, neuron.threshold, out=torch.empty_like(charged))
    return fired.to(x.dtype), _reset(charged, fired, neuron)


def _forward(x_T: Tensor, neuron: Constants) -> Tensor:
    x_TM = _in_order(x_T, x_T)
    spikes_TM = torch.empty_like(x_TM)
    for x_piece, spikes_piece in _pieces(x_TM, spikes_TM):
        _charge(x_piece, neuron, spikes_piece)
    return _shaped_as(x_T, spikes_TM)


def _memory_order(x_T: Tensor) -> list[int]:
    """Return the axes behind the first, the one with the largest steps in memory first."""
    return sorted(range(1, x_T.ndim), key=x_T.stride, reverse=True)


def _in_order(tensor_T: Tensor, x_T: Tensor) -> Tensor:
    """Flatten [T, ...] to [T, M] in the order in which `x_T` lies in memory: no copy of that."""
    return tensor_T.permute(0, *_memory_order(x_T)).reshape(len(x_T), -1)


def _shaped_as(x_T: Tensor, flat_TM: Tensor) -> Tensor:
    """Undo `_in_order`."""
    order = _memory_order(x_T)
    back = [1 + order.index(axis) for axis in range(1, x_T.ndim)]
    return flat_TM.view(len(x_T), *(x_T.shape[axis] for axis in order)).permute(0, *back)


def _pieces(*flat_TM: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(tensor_TM, PIECE, dim=1) for tensor_TM in flat_TM), strict=True)


def _charge(x_TM: Tensor, neuron: Constants, spikes_TM: Tensor) -> list[Tensor]:
    """Write the spikes of as many steps as `spikes_TM` has; return the membrane potential before
    each reset, in fp32.
    """
    charged_T = [x_TM[0].float()]
    for t in range(len(x_TM)):
        if t < len(spikes_TM):
            fired = _fp32(spikes_TM[t])
            torch.ge(charged_T[t], neuron.threshold, out=fired)
            _hand_over(fired, spikes_TM[t])
        if t < len(x_TM) - 1:
            voltage = _reset(charged_T[t], fired, neuron)
            charged_T.append(
                torch.add(x_TM[t + 1].float(), voltage, alpha=neuron.leak, out=voltage)
            )
    return charged_T


def _reset(charged_M: Tensor, fired_M: Tensor, neuron: Constants) -> Tensor:
    if neuron.hard:
        return torch.addcmul(charged_M, charged_M, fired_M, value=-1.0)
    return torch.add(charged_M, fired_M, alpha=-neuron.threshold)


def _fp32(target: Tensor) -> Tensor:
    """Return where to compute what goes to `target`: there, or in memory of its own."""
    return (
        target if target.dtype == torch.float32 else torch.empty_like(target, dtype=torch.float32)
    )


def _hand_over(result: Tensor, target: Tensor) -> None:
    if result is not target:
        target.copy_(result)


class _Spikes(torch.autograd.Function):
    """The derivation, with h the potential before reset, g the gradient of the spikes s.

    sg = alpha sigma (1 - sigma) at alpha (h - threshold); c_t = leak gh_{t+1}, c_T = 0;
    gh_t = g_t sg + c_t dv/dh, dv/dh = (1 - s) - h sg (hard), 1 - threshold sg (soft), less the
    sg part where the reset is detached; gx_t = gh_t.
    """

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, neuron: Constants) -> Tensor:
        ctx.save_for_backward(x_T)
        ctx.neuron = neuron
        return _forward(x_T, neuron)

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None]:
        (x_T,) = ctx.saved_tensors
        x_TM, grad_TM = _in_order(x_T, x_T), _in_order(grad_T, x_T)
        grad_x_TM = torch.empty_like(x_TM)
        for x_piece, grad_piece, grad_x_piece in _pieces(x_TM, grad_TM, grad_x_TM):
            _charge_backward(x_piece, grad_piece, grad_x_piece, ctx.neuron)
        return _shaped_as(x_T, grad_x_TM), None


def _charge_backward(x_TM: Tensor, grad_TM: Tensor, grad_x_TM: Tensor, neuron: Constants) -> None:
    """Write the gradient of the input. The potentials are computed again: it costs less than to
    keep them.
    """
    spikes_TM = torch.empty_like(x_TM[:-1], dtype=torch.float32)
    charged_T = _charge(x_TM, neuron, spikes_TM)
    offset = torch.tensor(-neuron.alpha * neuron.threshold)
    carry = None
    for t in range(len(charged_T) - 1, -1, -1):
        h, out = charged_T[t], _fp32(grad_x_TM[t])
        sigma = torch.add(offset, h, alpha=neuron.alpha).sigmoid_()
        through = grad_TM[t].float()
        if carry is not None and not neuron.detach_reset:
            amount = h if neuron.hard else torch.tensor(neuron.threshold)
            through = torch.addcmul(through, carry, amount, value=-1.0)
        torch.ops.aten.sigmoid_backward.grad_input(through, sigma, grad_input=out)
        out.mul_(neuron.alpha)
        if carry is not None:
            out.add_(carry.addcmul_(carry, spikes_TM[t], value=-1.0) if neuron.hard else carry)
        _hand_over(out, grad_x_TM[t])
        if t:
            carry = out * neuron.leak
