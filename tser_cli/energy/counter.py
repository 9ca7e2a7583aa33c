"""Counting synaptic operations while a network runs.

    with counting(model, model.input_kinds()) as counter:
        for images_NCHW, _ in loader:
            model(images_NCHW, timesteps=T)
    counts = counter.counts()

Hooks look at what every convolution and linear layer is fed. Totals stay on the device until
`counts()` reads them all at once. They are integers, exact for the inputs that the layers met,
whatever the batch split, memory layout, device or autocast; rounding can only change them by
changing a spike. An ANN's operations do not depend on the data: one image is enough.

The energy of a network in training, with a gradient: what `counter.py` counts, as a tensor.

    meter = EnergyMeter(model, model.input_kinds())
    with meter:
        logits = model(images_NCHW, timesteps=T)
    accumulates = meter.take() / len(images_NCHW)

The value is the counter's: inputs x fan-out, whole numbers up to 2^53 in float64. Each input of a
layer that spikes drive has its fan-out as gradient, so that the spikes' surrogate gradient carries
the price of a spike back to the weights. Multiply-accumulates do not depend on the data.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError, unknown
from tser_cli.energy.any_network.neurons import neuron_layers
from tser_cli.energy.counts import (
    CONV,
    INPUT_KINDS,
    LINEAR,
    REAL,
    Counts,
    Entry,
    LayerCounts,
    Record,
    layer_counts,
)
from tser_cli.energy.geometry import geometry, uncountable
from tser_cli.energy.tally import accumulates, channel_sums, fault, fault_message, tally

# A call of a layer that time is not folded into the batch of can't be placed by its shape alone:
# [T, N, features] is also N = T images of N vectors.
DIMENSIONS = {nn.Conv2d: (4, "[T*N, C, H, W]"), nn.Linear: (2, "[T*N, features]")}


@dataclass
class Watched:
    """A layer under watch: its module, its record, its geometry once an input was seen."""

    module: nn.Conv2d | nn.Linear
    record: Record
    shape: tuple[int, ...] = ()
    fan_out_P: Tensor = field(default_factory=lambda: torch.empty(0))
    faults: list[Tensor] = field(default_factory=list)
    order: int = 0


class SopCounter:
    """Counts a network that declares its inputs and folds time into the batch, as tser's own do.

    `counting` puts its hooks on and takes them off. Networks from elsewhere: `count_operations`.
    """

    def __init__(self, model: nn.Module, kinds: Mapping[str, str]) -> None:
        """Raises TserError where `kinds` does not fit `model`, or a layer can't be counted."""
        self.watched = _watched(model, kinds)
        self.owners = neuron_owners(model)
        self._neuron_updates: dict[str, int] = {}
        self._images: list[int] = []
        self._timesteps = 0

    def begin(self, images: int, timesteps: int) -> None:
        """Begin a batch. A call of the model says so by itself.

        Raises TserError where `timesteps` differs from that of the batches before.
        """
        if self._images and timesteps != self._timesteps:
            raise TserError(
                f"a batch of {timesteps} time steps follows one of {self._timesteps}; count each "
                "number of time steps by itself"
            )
        self._timesteps = timesteps
        self._images.append(images)

    def watch_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the model, called as `model(images_NCHW, timesteps=T)`; an ANN without T."""
        timesteps = args[1] if len(args) > 1 else kwargs.get("timesteps", 1)
        self.begin(len(_first(args, kwargs)), int(timesteps))

    def watch_layer(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Pre-hook of a convolution or linear layer."""
        watched, x = self.watched[name], _first(args, kwargs).detach()
        self._admit(name, watched, x)
        record, steps = watched.record, self._steps(name, len(x))
        watched.fan_out_P = watched.fan_out_P.to(x.device)
        with torch.no_grad():
            totals = tally(x, record.kind, watched.fan_out_P)
            record.entries.append(Entry(len(self._images) - 1, totals.view(3, steps, -1)))
            if record.kind != REAL:
                watched.faults.append(fault(x, record.kind))

    def watch_neurons(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Pre-hook of a layer of spiking neurons, whose input is [T*N, ...]."""
        x = _first(args, kwargs)
        if self._steps(name, len(x)) != self._timesteps:
            raise TserError(f"the neurons {name} were not run at every time step")
        self._neuron_updates[name] = x[0].numel()

    def counts(self) -> Counts:
        """Return everything counted so far, read from the device.

        Raises TserError where nothing ran, a layer was passed over in a batch, or a layer met data
        of another kind than it was declared to meet.
        """
        for name, watched in self.watched.items():
            seen = len(watched.record.entries)
            if not self._images or seen != len(self._images):
                raise TserError(
                    f"layer {name} was seen in {seen} of {len(self._images)} calls "
                    "of the network; count whole calls, of layers that are called as modules"
                )
        self._check_data()
        ran = sorted(self.watched, key=lambda name: self.watched[name].order)
        layers = tuple(self._layer_counts(name) for name in ran)
        return Counts(self._timesteps, sum(self._images), layers)

    def _admit(self, name: str, watched: Watched, x: Tensor) -> None:
        if len(watched.record.entries) >= len(self._images):
            raise TserError(
                f"layer {name} ran outside a call of the network, or twice in one; call the "
                "network itself, and give every use of a layer a module of its own"
            )
        if not watched.shape:
            self._describe(name, watched, x)
        if tuple(x.shape[1:]) != watched.shape:
            raise TserError(
                f"layer {name} met an input of {tuple(x.shape[1:])} after one of "
                f"{watched.shape}; count images of one size at a time"
            )

    def _describe(self, name: str, watched: Watched, x: Tensor) -> None:
        expected = next(found for t, found in DIMENSIONS.items() if isinstance(watched.module, t))
        if x.dim() != expected[0]:
            raise TserError(
                f"layer {name} met an input of {tuple(x.shape)}, not {expected[1]}: it can't be "
                "told here what is time and what are images; count such a network with "
                'count_operations(network, layout="time-first") or another layout'
            )
        watched.order = sum(bool(other.shape) for other in self.watched.values())
        watched.shape = tuple(x.shape[1:])
        found = geometry(watched.module, tuple(x.shape))
        watched.fan_out_P, record = found.fan_out_P, watched.record
        record.neurons_in, record.outputs = found.neurons_in, found.outputs
        record.macs, record.macs_formula = found.macs, found.macs_formula

    def _steps(self, name: str, batch: int) -> int:
        """Return the time steps folded into a batch: T, or 1 where it is computed once an image."""
        images = self._images[-1] if self._images else 0
        if batch == self._timesteps * images:
            return self._timesteps
        if batch == images:
            return 1
        raise TserError(
            f"{name} saw a batch of {batch}, which is neither {images} images nor "
            f"{self._timesteps} time steps of them; fold time into the batch, time outermost"
        )

    def _check_data(self) -> None:
        checked = [name for name, watched in self.watched.items() if watched.faults]
        if not checked:
            return
        worst = torch.stack([torch.stack(self.watched[name].faults).amax() for name in checked])
        for name, code in zip(checked, worst.tolist(), strict=True):
            if code:
                raise TserError(fault_message(name, self.watched[name].record.kind, code))

    def _layer_counts(self, name: str) -> LayerCounts:
        updates = [
            self._neuron_updates.get(n, 0) for n, owner in self.owners.items() if owner == name
        ]
        return layer_counts(self.watched[name].record, self._timesteps, sum(updates))


@contextmanager
def counting(model: nn.Module, kinds: Mapping[str, str]) -> Iterator[SopCounter]:
    """Count what `model` does inside the `with`; the hooks are always taken off again.

    `kinds`: what feeds each Conv2d and Linear, by qualified name: "real", "spikes" or "sums".
    A compiled model runs uncompiled meanwhile, since compiled code would pass the hooks by.
    Raises TserError where `kinds` does not fit the model, or a layer can't be counted.
    """
    plain: nn.Module = getattr(model, "_orig_mod", model)
    counter = SopCounter(plain, kinds)
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        watched = [(plain, counter.watch_model)]
        watched += [(w.module, partial(counter.watch_layer, n)) for n, w in counter.watched.items()]
        for name in counter.owners:
            watched.append((plain.get_submodule(name), partial(counter.watch_neurons, name)))
        for module, hook in watched:
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield counter


def neuron_owners(model: nn.Module) -> dict[str, str]:
    """For each layer of spiking neurons, the layer that its updates are listed with.

    That is the Conv2d or Linear defined last before it, or the first one where none is.
    """
    owners: dict[str, str] = {}
    layer = next((n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)), "")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layer = name
        elif getattr(module, "is_spiking_neuron", False):
            owners[name] = layer
    return owners


def _watched(model: nn.Module, kinds: Mapping[str, str]) -> dict[str, Watched]:
    watched: dict[str, Watched] = {}
    for name, module in model.named_modules():
        problem = uncountable(module)
        if problem:
            raise TserError(f"layer {name} can't be counted: {problem}")
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if kinds.get(name) not in INPUT_KINDS:
            kind = kinds.get(name, "")
            raise TserError(f"layer {name}: {unknown('kind of input', kind, INPUT_KINDS)}")
        watched[name] = Watched(module, _record(name, module, kinds[name]))
    surplus = sorted(kinds.keys() - watched.keys())
    if surplus or not watched:
        raise TserError(
            f"no Conv2d or Linear layer is called {', '.join(surplus)}"
            if surplus
            else "the network has no Conv2d or Linear layer; there is nothing to count"
        )
    _refuse_neurons_of_others(model)
    return watched


def _refuse_neurons_of_others(model: nn.Module) -> None:
    for name, module in neuron_layers(model):
        if not getattr(module, "is_spiking_neuron", False):
            raise TserError(
                f"the neurons {name} are {type(module).__module__}.{type(module).__name__}, whose "
                "time steps and updates are not known here; count such a network with "
                "count_operations(network, layout=...)"
            )


def stored_bytes(layer: nn.Conv2d | nn.Linear) -> int:
    """Return the size of a stored weight: what the layer says of it, or that of its parameter.

    Layers that are trained with integer weights keep them as floats, and say `weight_bytes`.
    """
    return int(getattr(layer, "weight_bytes", layer.weight.element_size()))


def _record(name: str, module: nn.Conv2d | nn.Linear, kind: str) -> Record:
    bias = module.bias
    return Record(
        name=name,
        type=CONV if isinstance(module, nn.Conv2d) else LINEAR,
        kind=kind,
        weight_bytes=stored_bytes(module),
        bias_bytes=0 if bias is None else bias.element_size(),
    )


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x = args[0] if args else next(iter(kwargs.values()))
    assert isinstance(x, Tensor), "the first argument of a layer or model is its input"
    return x


class EnergyMeter:
    """Add up the accumulates of all layers of `model` that spikes drive, inside a `with`.

    `kinds`: what feeds each Conv2d and Linear, as for `counting`. The hooks are on the layers
    inside the `with` alone.
    """

    def __init__(self, model: nn.Module, kinds: Mapping[str, str]) -> None:
        self._layers = {
            name: model.get_submodule(name) for name, kind in kinds.items() if kind != REAL
        }
        self._fan_outs: dict[tuple[Any, ...], Tensor] = {}
        self._found: dict[str, Tensor] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> EnergyMeter:
        self._found.clear()
        for name, layer in self._layers.items():
            hook = layer.register_forward_pre_hook(partial(self._watch, name))
            self._hooks.callback(hook.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()

    def take(self) -> Tensor:
        """Return the accumulates of the batch, a float64 scalar with a gradient; forget them.

        Raises TserError where a layer did not run.
        """
        missing = self._layers.keys() - self._found.keys()
        if missing:
            raise TserError(
                f"layer {min(missing)} did not run in this pass, so that its energy is not known; "
                "an energy budget needs a network that computes all of its layers for every image"
            )
        total = torch.stack(list(self._found.values())).sum()
        self._found.clear()
        return total

    def _watch(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if name in self._found:
            raise TserError(
                f"layer {name} ran twice in one pass; give every use of a layer a module of its own"
            )
        x: Tensor = args[0]
        self._found[name] = _Accumulates.apply(x, self._fan_out(name, module, x))

    def _fan_out(self, name: str, module: nn.Module, x: Tensor) -> Tensor:
        key = (name, x.device, *x.shape[1:])
        if key not in self._fan_outs:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            found = geometry(module, tuple(x.shape)).fan_out_P
            self._fan_outs[key] = found.to(x.device, torch.float64)
        return self._fan_outs[key]


class _Accumulates(torch.autograd.Function):
    """Sum of inputs x fan-out over a batch, float64; the gradient of an input is its fan-out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fan_out_P: Tensor) -> Tensor:
        # No tensor is saved for backward: blocks that are computed again must find as many as
        # they had without a meter.
        ctx.fan_out_P, ctx.shape, ctx.dtype = fan_out_P, x.shape, x.dtype
        sums_BP = channel_sums(x, torch.promote_types(x.dtype, torch.float32))
        return accumulates(sums_BP, fan_out_P).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        price_P = (grad * ctx.fan_out_P).to(ctx.dtype)
        maps = ctx.shape[2:] if len(ctx.shape) == 4 else (1,)
        return price_P.view(maps).expand(ctx.shape), None
