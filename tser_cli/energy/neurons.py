"""Spiking neurons of other libraries: which modules are some, and how their states are reset."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

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
    """Forget the states of all neurons, each by its own method; without one it has no state.

    Methods of the known libraries are called, and of others those that take no argument and leave
    the weights as they are.
    """
    # By the library's method, as only that knows what a neuron keeps. norse's neurons are given
    # their state by their caller, and have nothing to forget.
    for module in network.modules():
        # torch's own look-up of what is not there is slow, and most modules have no reset.
        plain = type(module).__getattr__ is nn.Module.__getattr__
        for name in RESETS:
            if plain and not hasattr(type(module), name) and name not in vars(module):
                continue
            # A property runs its code where it is looked up.
            own = isinstance(getattr(type(module), name, None), property)
            method = None if own else getattr(module, name, None)
            # A layer or a list of layers may be called so: the reset gate of a recurrent cell.
            if not callable(method) or isinstance(method, nn.Module | type):
                continue
            if not _callable_alone(method):
                continue  # one that asks for more is its network's to call
            if _only_forgets(module, name, method):
                method()
                break


def _callable_alone(method: Callable[..., Any]) -> bool:
    """Return whether a method can be called without an argument."""
    if inspect.ismethod(method):
        return _binds(method.__func__, 1)
    return _binds.__wrapped__(method, 0)


# Cached: the same few functions are asked for in every batch.
@lru_cache(maxsize=256)
def _binds(function: Callable[..., Any], arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except (TypeError, ValueError):
        return False
    return True


_forgets: WeakKeyDictionary[type, dict[str, bool]] = WeakKeyDictionary()


def _only_forgets(module: nn.Module, name: str, method: Callable[[], Any]) -> bool:
    """Return whether a method can be called and leaves weights alone; found out once a class."""
    library = (getattr(method, "__module__", "") or "").partition(".")[0]
    if library in ("spikingjelly", "snntorch", "norse"):
        return True
    if not inspect.ismethod(method):
        return False  # a function kept as an attribute would reset the original of a copy
    known = _forgets.setdefault(type(module), {})
    if name not in known:
        try:
            tried = copied(module)
        except Exception:
            return False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            before = {key: x.clone() for key, x in _weights(tried)}
            try:
                getattr(tried, name)()
                known[name] = _same_weights(before, dict(_weights(tried)))
            except Exception:  # whatever a stranger's method raises
                known[name] = False
    return known[name]


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy, of potentials that have a gradient's history and of lazy buffers too."""
    # torch copies neither by itself, though it copies parameters without a size.
    # spikingjelly keeps potentials in a dict of its own.
    values = [
        value
        for part in module.modules()
        for value in (*vars(part).values(), *vars(part).get("_memories", {}).values())
    ]
    memo: dict[int, Any] = {
        id(x): x.detach().clone() for x in values if isinstance(x, Tensor) and not x.is_leaf
    }
    for x in module.buffers():
        if nn.parameter.is_lazy(x):
            memo[id(x)] = nn.parameter.UninitializedBuffer()
    return copy.deepcopy(module, memo)


def different(network: nn.Module, other: nn.Module) -> dict[tuple[str, str], Any]:
    """Return the tensors and numbers that a copy has otherwise, by module and attribute.

    Those that are a tensor or a number in one of the two alone are among them.
    """
    found: dict[tuple[str, str], Any] = {}
    parts = dict(other.named_modules())
    for name, module in network.named_modules():
        before, after = (_values(part) for part in (module, parts.get(name, module)))
        for attribute in {**before, **after}:
            now = after.get(attribute)
            if not equal(before.get(attribute), now):
                found[name, attribute] = now.clone() if isinstance(now, Tensor) else now
    return found


def equal(one: Any, other: Any) -> bool:
    """Return whether two tensors, numbers or texts are the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _values(module: nn.Module) -> dict[str, Any]:
    """Return the tensors, numbers and texts that a module keeps; lazy tensors have no values yet.

    Numbers of torch itself, which no two copies have alike, are left out.
    """
    kept = {**vars(module), **module._buffers, **module._parameters}
    return {
        name: value
        for name, value in kept.items()
        if (isinstance(value, Tensor) and not nn.parameter.is_lazy(value))
        or (isinstance(value, int | float | str) and name != "training" and name[0] != "_")
    }


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers that have a size."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if not nn.parameter.is_lazy(value):
            yield name, value


def _same_weights(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Return whether weights are as before; a buffer that has become constant is a state."""
    for name, value in before.items():
        now = after.get(name)
        if now is not None and now.shape == value.shape and torch.equal(now, value):
            continue
        constant = now is None or now.numel() == 0 or bool((now == now.flatten()[0]).all())
        if isinstance(now, nn.Parameter) or not constant or "running_" in name:
            return False
    return True
