"""Spiking neurons of other libraries: which modules are some, and how their states are reset."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from torch import nn

LIBRARIES = {
    "spikingjelly.activation_based.neuron": "spikingjelly",
    "snntorch": "snnTorch",
    "norse.torch": "norse",
}
"""Packages whose classes hold a layer of neurons, by what the classes are called there."""
NEURON_BASES = {
    "spikingjelly": ("BaseNode", "SimpleBaseNode", "NonSpikingBaseNode"),
    "snnTorch": ("SpikingNeuron",),
    "norse": ("SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell"),
}
RESETS = ("reset_mem", "reset_state", "reset_states", "reset")
"""What the libraries, and most people, call the method that forgets a neuron's state."""


def is_spiking_neuron(module: nn.Module) -> bool:
    """Return whether `module` is a layer of neurons of ours, or of a plug-in that says so."""
    return bool(getattr(module, "is_spiking_neuron", False))


def library_of(module: nn.Module) -> str:
    """Return the library whose neuron `module` is: spikingjelly, snnTorch, norse, tser's own, or
    "".
    """
    if is_spiking_neuron(module):
        return "tser"
    for base in type(module).__mro__:
        for package, library in LIBRARIES.items():
            if base.__module__.startswith(package) and base.__name__ in NEURON_BASES[library]:
                return library
    return ""


def neuron_class(module: nn.Module) -> str:
    """Return the name of the class of a layer of neurons; of tser's own, that of the node
    inside.
    """
    inner = getattr(module, "node", None) if library_of(module) == "tser" else None
    return type(inner if isinstance(inner, nn.Module) else module).__name__


def neuron_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of neurons of known libraries, without those inside another one."""
    inside: set[int] = set()
    for name, module in network.named_modules():
        if id(module) in inside or not library_of(module):
            continue
        inside |= {id(child) for child in module.modules()}
        yield name, module


def reset_states(network: nn.Module) -> None:
    """Forget the states of all neurons, each by its own method; without one it has no state.

    norse's neurons are given their state by their caller, and have nothing to forget.
    """
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
