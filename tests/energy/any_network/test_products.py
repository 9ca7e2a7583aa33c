"""Products of all kinds that networks have: counted, named, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tser_cli.base.errors import TserError
from tser_cli.energy.any_network.layouts import present
from tser_cli.energy.any_network.network_counter import TrialCounter, count_operations

SPIKING = 2  # images of ones: every one of the 16 neurons fires at each step


class Net(nn.Module):
    """Sixteen neurons that fire at each step, and what makes of their spikes [N, 16] an output."""

    def __init__(self, then: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.n, self.then = neuron.IFNode(), then
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.then(self, self.n(x))
        return made


def ran(net: nn.Module, timesteps: int = 1, features: int = 16) -> TrialCounter:
    torch.manual_seed(0)
    shown = present("stepwise", torch.ones(SPIKING, features), timesteps, ((), {}))
    with torch.no_grad(), count_operations(net.eval(), "stepwise", timesteps) as counter:
        shown.call(net)
    return counter


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def lora(net: Any, spikes: Tensor) -> Tensor:
    return F.linear(spikes, net.base.weight + net.b @ net.a, net.base.bias)


LINEAR: Any = {"then": lambda net, spikes: net.fc(spikes)}
WEIGHTS_ALONE: dict[str, tuple[Callable[[], Net], set[str]]] = {
    "lora": (
        lambda: Net(lora, base=nn.Linear(16, 5), a=parameter(2, 16), b=parameter(5, 2)),
        {"b"},
    ),
    "spectral norm": (
        lambda: Net(**LINEAR, fc=parametrizations.spectral_norm(nn.Linear(16, 5))),
        {"fc.parametrizations.weight.0", "fc.parametrizations.weight.original"},
    ),
    "orthogonal": (
        lambda: Net(**LINEAR, fc=parametrizations.orthogonal(nn.Linear(16, 5))),
        {"fc.parametrizations.weight.0"},
    ),
    "weight norm": (
        lambda: Net(**LINEAR, fc=parametrizations.weight_norm(nn.Linear(16, 5))),
        set(),
    ),
    "network of a table": (
        lambda: Net(
            lambda net, spikes: F.linear(spikes, net.make(net.table)),
            make=nn.Linear(3, 16),
            table=parameter(5, 3),
        ),
        {"make"},
    ),
}


@pytest.mark.parametrize("name", WEIGHTS_ALONE)
@pytest.mark.parametrize("timesteps", [1, 3])
def test_products_of_weights_alone_are_named_and_not_counted(name: str, timesteps: int) -> None:
    make, named = WEIGHTS_ALONE[name]
    counter = ran(make(), timesteps)
    (layer,) = counter.counts().layers
    # 16 spikes x 5 outputs at each step, whatever the weights are made of.
    assert layer.events_TI.tolist() == [[80, 80]] * timesteps
    assert layer.neuron_updates == 16
    assert counter.weights_alone == named


def test_what_a_batch_has_in_common_is_no_weight() -> None:
    """A mean over images has no axis of them, and yet belongs to them."""
    net = Net(
        lambda net, s: net.fc(s) + net.gate(s.mean(0)), fc=nn.Linear(16, 5), gate=nn.Linear(16, 5)
    )
    with pytest.raises(TserError, match=r"gate: .* changes with another image"):
        ran(net)


def test_weights_alone_are_nothing_to_count() -> None:
    with pytest.raises(TserError, match="nothing to count"):
        ran(Net(lambda net, spikes: spikes + (net.a @ net.a)[0], a=parameter(16, 16)))
