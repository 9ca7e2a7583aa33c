"""Activations: ReLU for an ANN, spiking neurons over all time steps for an SNN.

Inside a network time is folded into the batch: convolutions, norms and linear layers are torch's
own and see [T * N, ...] with time outermost. Only the neurons know that there is a time axis.

spikingjelly's multi-step neurons are the reference, and serve on GPUs, by fused kernels. On a CPU
they make some twenty passes over memory a time step, which costs more than the convolutions. LIF
and IF are therefore written again here, with spikingjelly's spikes to the last bit and its
gradients. One piece of a layer at a time is worked on, which stays in the cache from one operation
to the next, and only the input is kept for backward. Input and spikes may be bf16: 0 and 1 are
exact in it, and membrane potentials are fp32 all the same; of float64 they are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from tser_cli.models.savings import whole_numbers
from tser_cli.settings.config import NeuronConfig

SURROGATES = {
    "sigmoid": surrogate.Sigmoid,
    "atan": surrogate.ATan,
    "rect": surrogate.Rect,
    "piecewise_quadratic": surrogate.PiecewiseQuadratic,
}


def activation_factory(config: NeuronConfig | None) -> Callable[[], nn.Module]:
    """Return what a network calls for each of its activations; None builds an ANN."""
    if config is None:
        return Relu
    return lambda: SpikingNeuron(config)


class Relu(nn.Module):
    """max(x, 0), the activation of an ANN; `timesteps` is ignored."""

    def forward(self, x: Tensor, timesteps: int = 1) -> Tensor:
        return torch.relu(x)


class SpikingNeuron(nn.Module):
    """A layer of spiking neurons on time-folded input.

    [T*N, ...] membrane input -> [T*N, ...] spikes (0 or 1). The membrane potential starts from
    its reset value at every call: no state is left from one batch to the next, unless streaming.
    """

    is_spiking_neuron = True
    without_products = True  # no convolution, linear layer or matrix product is inside

    def __init__(self, config: NeuronConfig) -> None:
        super().__init__()
        self._hold(make_node(config), constants(config))

    def _hold(self, node: nn.Module, fused: Constants | None) -> None:
        self.node = node
        self._fused = fused
        self._streaming = False
        # Used while streaming alone. Else potentials live within a call: a batch that was broken
        # off, or a copy of the network, then leaves nothing behind.
        self._voltage: Tensor | None = None

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        x_T = x.reshape(timesteps, -1, *x.shape[1:])
        fused = self._fused if serves(x) else None
        if self._streaming:
            if fused is None:
                return self._spikingjelly(x_T).flatten(0, 1)
            spikes, self._voltage = one_step(x, self._voltage, fused)
            return spikes
        if fused is not None:
            return whole_numbers(spikes_of(x_T, fused).flatten(0, 1))
        # before as well: a call that was broken off has left its potentials
        functional.reset_net(self.node)
        spikes_T = self._spikingjelly(x_T)
        functional.reset_net(self.node)
        return whole_numbers(spikes_T.flatten(0, 1))

    def _spikingjelly(self, x_T: Tensor) -> Tensor:
        # Membrane potentials of bf16 would round away what a step adds. On a GPU spikingjelly's
        # kernels decide.
        narrow = x_T.dtype == torch.bfloat16 and x_T.device.type == "cpu"
        given_T = x_T.float() if narrow else x_T
        spikes_T: Tensor = self.node(given_T)
        return spikes_T.to(x_T.dtype)

    def set_streaming(self, streaming: bool) -> None:
        """Keep the membrane potential between calls, or not; it starts anew in either case."""
        self._streaming = streaming
        self._voltage = None
        functional.reset_net(self.node)

    def keep(self, chosen: Tensor) -> None:
        """While streaming: forget the membrane potentials of all images but the chosen ones.

        `chosen`: a mask, or places in the batch.
        """
        if self._voltage is not None:
            self._voltage = self._voltage[chosen]
            return
        voltage = self.node.v
        assert isinstance(voltage, Tensor), "a step came first"
        self.node.v = voltage[chosen]


class Timed(nn.ModuleList):
    """Layers in a row, of which the activations alone take the number of time steps."""

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        for layer in self:
            timed = isinstance(layer, Relu | SpikingNeuron)
            x = layer(x, timesteps) if timed else layer(x)
        return x


def make_node(config: NeuronConfig) -> nn.Module:
    """spikingjelly's multi-step LIF, IF or PLIF node with the recipe's constants.

    Charge, with decay_input False: v[t] = v[t-1] - (v[t-1] - v_reset) / tau + x[t]; a spike where
    v >= threshold; hard reset to `reset_value`, or soft reset by subtracting the threshold.
    """
    common = {
        "v_threshold": config.threshold,
        "v_reset": config.reset_value if config.reset == "hard" else None,
        "surrogate_function": SURROGATES[config.surrogate](alpha=config.surrogate_alpha),
        "detach_reset": config.detach_reset,
        "step_mode": "m",
    }
    if config.name == "if":
        node = neuron.IFNode(**common)
    elif config.name == "plif":
        node = neuron.ParametricLIFNode(
            init_tau=config.tau, decay_input=config.decay_input, **common
        )
    else:
        node = neuron.LIFNode(tau=config.tau, decay_input=config.decay_input, **common)
    assert isinstance(node, nn.Module)
    return node


SERVED = (torch.float32, torch.bfloat16, torch.float64)
# Values of a time step that are worked on at once, 1 MB in fp32. Measured on cores with 1 MB of L2
# cache each: smaller pieces cost calls, larger ones traffic.
PIECE = 2**18


@dataclass(frozen=True)
class Constants:
    """Neuron constants. `leak`: what is left of the membrane potential after a step.

    `gain`: what the input counts times; where it is not 1, the leak is 1 - gain.
    """

    leak: float
    threshold: float
    hard: bool
    detach_reset: bool
    alpha: float
    gain: float = 1.0


def constants(config: NeuronConfig) -> Constants | None:
    """Return the constants of a neuron that this file can serve to the last bit, else None."""
    return constants_of(make_node(config)) if config.backend == "auto" else None


def constants_of(node: nn.Module) -> Constants | None:
    """Return the constants of a node of spikingjelly, None where this file can't serve it.

    leak * v + x rounds once where spikingjelly's v - v / tau + x rounds twice; only for a leak of
    1 or 1/2 is the product exact and the sum the same. All else is left to spikingjelly, as are a
    reset to anything but 0 and other surrogates.
    """
    lif = type(node) is neuron.LIFNode
    if not lif and type(node) is not neuron.IFNode:
        return None
    spiking: Any = node
    if (lif and spiking.tau != 2.0) or spiking.v_reset not in (None, 0.0):
        return None
    if type(spiking.surrogate_function) is not surrogate.Sigmoid:
        return None
    return Constants(
        leak=0.5 if lif else 1.0,
        threshold=spiking.v_threshold,
        hard=spiking.v_reset is not None,
        detach_reset=spiking.detach_reset,
        alpha=spiking.surrogate_function.alpha,
        gain=0.5 if lif and spiking.decay_input else 1.0,
    )


def serves(x: Tensor) -> bool:
    """Return whether `x` is of a kind that this file is written for."""
    return x.device.type == "cpu" and x.dtype in SERVED


def spikes_of(x_T: Tensor, neuron: Constants) -> Tensor:
    """Membrane input [T, ...] -> spikes [T, ...], differentiable by the sigmoid surrogate."""
    # without gradients nothing need be kept: evaluation and frozen layers skip autograd
    if torch.is_grad_enabled() and x_T.requires_grad:
        spikes: Tensor = _Spikes.apply(x_T, neuron)
        return spikes
    return _forward(x_T, neuron)


def one_step(x: Tensor, voltage: Tensor | None, neuron: Constants) -> tuple[Tensor, Tensor]:
    """Membrane input of one step and what the last reset left -> spikes, and what is left now.

    `voltage` None: nothing came before. Not differentiable.
    """
    charged = x.to(_wide(x))
    if voltage is None:
        charged = charged * neuron.gain if neuron.gain != 1.0 else charged
    else:
        charged = _charged(charged, voltage, neuron)
    fired = torch.ge(charged, neuron.threshold, out=torch.empty_like(charged))
    return fired.to(x.dtype), _reset(charged, fired, neuron)


def _forward(x_T: Tensor, neuron: Constants) -> Tensor:
    x_TM = _in_order(x_T, x_T)
    spikes_TM = torch.empty_like(x_TM)
    # a piece through all steps, and not a step through all pieces: so its potentials stay in cache
    for x_piece, spikes_piece in _pieces(x_TM, spikes_TM):
        _charge(x_piece, neuron, spikes_piece)
    return _shaped_as(x_T, spikes_TM)


class _Spikes(torch.autograd.Function):
    """The derivation, with h the potential before reset, g the gradient of the spikes s.

    sg = alpha sigma (1 - sigma) at alpha (h - threshold); c_t = leak gh_{t+1}, c_T = 0;
    gh_t = g_t sg + c_t dv/dh, dv/dh = (1 - s) - h sg (hard), 1 - threshold sg (soft), less the
    sg part where the reset is detached; gx_t = gain gh_t.
    """

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, neuron: Constants) -> Tensor:
        # the input alone: spikes and potentials follow from it
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


def _charge(x_TM: Tensor, neuron: Constants, spikes_TM: Tensor) -> list[Tensor]:
    """Write the spikes of as many steps as `spikes_TM` has.

    Returns the membrane potentials before each reset, in `_wide`'s type.
    """
    # Compare, reset, leak, add: spikingjelly's order of operations. Another rounds otherwise, and a
    # potential at the threshold then decides otherwise.
    wide = _wide(x_TM)
    charged_T = [x_TM[0].to(wide) * neuron.gain if neuron.gain != 1.0 else x_TM[0].to(wide)]
    for t in range(len(x_TM)):
        if t < len(spikes_TM):
            fired = _wide_room(spikes_TM[t])
            torch.ge(charged_T[t], neuron.threshold, out=fired)
            _hand_over(fired, spikes_TM[t])
        if t < len(x_TM) - 1:
            voltage = _reset(charged_T[t], fired, neuron)
            charged_T.append(_charged(x_TM[t + 1].to(wide), voltage, neuron))
    return charged_T


def _charged(x_M: Tensor, voltage_M: Tensor, neuron: Constants) -> Tensor:
    """Return the potential before the reset, in place of the one after the last."""
    if neuron.gain == 1.0:
        return torch.add(x_M, voltage_M, alpha=neuron.leak, out=voltage_M)
    # v + (x - v) / tau, as spikingjelly computes it: x / tau + v / tau would round otherwise
    return voltage_M.add_(x_M - voltage_M, alpha=neuron.gain)


def _reset(charged_M: Tensor, fired_M: Tensor, neuron: Constants) -> Tensor:
    if neuron.hard:
        return torch.addcmul(charged_M, charged_M, fired_M, value=-1.0)
    return torch.add(charged_M, fired_M, alpha=-neuron.threshold)


def _charge_backward(x_TM: Tensor, grad_TM: Tensor, grad_x_TM: Tensor, neuron: Constants) -> None:
    """Write the gradient of the input.

    The potentials are computed again: that costs less than to keep them.
    """
    wide = _wide(x_TM)
    spikes_TM = torch.empty_like(x_TM[:-1], dtype=wide)
    charged_T = _charge(x_TM, neuron, spikes_TM)
    # in place wherever a tensor is not read again: each pass over memory counts
    offset = torch.tensor(-neuron.alpha * neuron.threshold, dtype=wide)
    carry = None
    for t in range(len(charged_T) - 1, -1, -1):
        h, out = charged_T[t], _wide_room(grad_x_TM[t])
        sigma = torch.add(offset, h, alpha=neuron.alpha).sigmoid_()
        through = grad_TM[t].to(wide)
        if carry is not None and not neuron.detach_reset:
            amount = h if neuron.hard else torch.tensor(neuron.threshold, dtype=wide)
            through = torch.addcmul(through, carry, amount, value=-1.0)
        torch.ops.aten.sigmoid_backward.grad_input(through, sigma, grad_input=out)
        out.mul_(neuron.alpha)
        if carry is not None:
            out.add_(carry.addcmul_(carry, spikes_TM[t], value=-1.0) if neuron.hard else carry)
        if t:
            carry = out * neuron.leak
        if neuron.gain != 1.0:
            out.mul_(neuron.gain)
        _hand_over(out, grad_x_TM[t])


def _wide(x: Tensor) -> torch.dtype:
    """Return the type of membrane potentials: at least fp32."""
    return torch.promote_types(x.dtype, torch.float32)


def _wide_room(target: Tensor) -> Tensor:
    """Return where to compute what goes to `target`: there, or in memory of its own."""
    wide = _wide(target)
    return target if target.dtype == wide else torch.empty_like(target, dtype=wide)


def _hand_over(result: Tensor, target: Tensor) -> None:
    if result is not target:
        target.copy_(result)


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
