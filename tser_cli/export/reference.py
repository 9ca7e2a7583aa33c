"""What a student does in float64: its spikes, and how near each potential was to the threshold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tser_cli.export.graph import Array, Graph, Neuron
from tser_cli.models import Classifier
from tser_cli.models.neurons import SpikingNeuron


@dataclass(frozen=True, eq=False)
class Trace:
    """A run over T steps. By layer, [T, N, ...]: `spikes`, and `distance` = |h - threshold|."""

    logits_TNK: Array
    spikes: dict[str, NDArray[np.bool_]]
    distance: dict[str, NDArray[np.float32]]

    @property
    def images(self) -> int:
        """Return the number of images."""
        return int(self.logits_TNK.shape[1])


@torch.no_grad()
def record(model: Classifier, graph: Graph, images_NCHW: Tensor) -> Trace:
    """Run a float64 copy of `model` itself, norms unfolded, over the graph's number of steps.

    The potentials are computed again from the neurons' input by the equations of `graph`, which
    must give the spikes that the network gave: AssertionError otherwise.
    """
    twin = copy.deepcopy(model).double().cpu().eval()
    steps = graph.facts.timesteps
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in twin.named_modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(_keeper(kept, name))
    logits_TNK = twin(images_NCHW.double().cpu(), steps)
    spikes, distance = {}, {}
    for neuron in graph.neurons:
        x_T, fired_T = (
            tensor.reshape(steps, -1, *neuron.shape).numpy() for tensor in kept[neuron.name]
        )
        charged_T = charges(x_T, neuron)
        assert np.array_equal(charged_T >= neuron.threshold, fired_T != 0), neuron.name
        spikes[neuron.name] = fired_T != 0
        distance[neuron.name] = np.abs(charged_T - neuron.threshold).astype(np.float32)
    return Trace(logits_TNK.numpy(), spikes, distance)


def _keeper(kept: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        kept[name] = (args[0], output)

    return keep


def charges(x_T: Array, neuron: Neuron) -> Array:
    """Membrane potentials before each reset, [T, ...], by the neuron's equations."""
    voltage = np.full_like(x_T[0], neuron.rest)
    charged_T = np.empty_like(x_T)
    for t, x in enumerate(x_T):
        charged = neuron.rest + neuron.leak * (voltage - neuron.rest) + neuron.gain * x
        fired = charged >= neuron.threshold
        charged_T[t] = charged
        if neuron.reset is None:
            voltage = charged - neuron.threshold * fired
        else:
            voltage = np.where(fired, neuron.reset, charged)
    return charged_T
