"""Activations: ReLU for an ANN, spikingjelly's multi-step neurons for an SNN.

Inside a network time is folded into the batch: convolutions, norms and linear layers are torch's
own and see [T*N, ...] with time outermost. Only the neurons know that there is a time axis.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from tser_cli.config import NeuronConfig
from tser_cli.models import fused
from tser_cli.models.savings import whole_numbers

SURROGATES = {
    "sigmoid": surrogate.Sigmoid,
    "atan": surrogate.ATan,
    "rect": surrogate.Rect,
    "piecewise_quadratic": surrogate.PiecewiseQuadratic,
}


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

    def __init__(self, config: NeuronConfig) -> None:
        super().__init__()
        self.node = make_node(config)
        self._fused = fused.constants(config)
        self._streaming = False
        self._voltage: Tensor | None = None

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        x_T = x.reshape(timesteps, -1, *x.shape[1:])
        served = self._fused is not None and fused.serves(x)
        if self._streaming:
            return self._streamed(x) if served else self._spikingjelly(x_T).flatten(0, 1)
        if self._fused is not None and served:
            return whole_numbers(fused.spikes_of(x_T, self._fused).flatten(0, 1))
        functional.reset_net(self.node)
        spikes = self._spikingjelly(x_T)
        functional.reset_net(self.node)
        return whole_numbers(spikes.flatten(0, 1))

    def _streamed(self, x: Tensor) -> Tensor:
        assert self._fused is not None
        spikes, self._voltage = fused.one_step(x, self._voltage, self._fused)
        return spikes

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


def activation_factory(config: NeuronConfig | None) -> Callable[[], nn.Module]:
    """Return what a network calls for each of its activations; None builds an ANN."""
    if config is None:
        return Relu
    return lambda: SpikingNeuron(config)
