"""Spiking neurons of other libraries: which modules are some, and how their states are reset."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from torch import nn

# By name, as none of these libraries has to be installed, nor is imported for a network without.
NEURON_BASES = {
    "spikingjelly.activation_based.neuron": ("BaseNode", "SimpleBaseNode", "NonSpikingBaseNode"),
    "snntorch": ("SpikingNeuron",),
    "norse.torch": ("SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell"),
}
"""Packages, and what in them the base classes of layers of neurons are called."""
RESETS = ("reset_mem", "reset_state", "reset_states", "reset")
"""What the libraries, and most people, call the method that forgets a neuron's state."""


def is_spiking_neuron(module: nn.Module) -> bool:
    """Return whether `module` is a layer of neurons of ours, or of a plug-in that says so."""
    return bool(getattr(module, "is_spiking_neuron", False))


def neuron_class(module: nn.Module) -> str:
    """Return the name of the class of a layer of neurons; of ours, that of the node inside."""
    inner = getattr(module, "node", None) if is_spiking_neuron(module) else None
    return type(inner if isinstance(inner, nn.Module) else module).__name__


def neuron_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of neurons of known libraries, without those inside another one."""
    inside: set[int] = set()
    for name, module in network.named_modules():
        known = is_spiking_neuron(module) or any(
            base.__module__.startswith(package) and base.__name__ in names
            for base in type(module).__mro__
            for package, names in NEURON_BASES.items()
        )
        # A recurrent or wrapped layer holds another one, which would count its updates again.
        if known and id(module) not in inside:
            inside |= {id(child) for child in module.modules()}
            yield name, module


def reset_states(network: nn.Module) -> None:
    """Forget the states of all neurons, each by its own method; without one it has no state."""
    # By the library's method, as only that knows what a neuron keeps. norse's neurons are given
    # their state by their caller, and have nothing to forget.
    for module in network.modules():
        for name in RESETS:
            method = getattr(module, name, None)
            if not callable(method):
                continue
            try:
                inspect.signature(method).bind()
            except (TypeError, ValueError):
                continue  # one that asks for more is its network's to call
            method()
            break
