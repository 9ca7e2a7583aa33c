"""Counting synaptic operations while a network runs.

    with counting(model, model.input_kinds()) as counter:
        for images_NCHW, _ in loader:
            model(images_NCHW, timesteps=T)
    counts = counter.counts()

Hooks look at what every convolution and linear layer is fed. Totals stay on the device until
`counts()` reads them all at once. They are integers, exact for the inputs that the layers met,
whatever the batch split, memory layout, device or autocast; rounding can only change them by
changing a spike. An ANN's operations do not depend on the data: one image is enough.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.energy.counts import INPUT_KINDS, REAL, Counts, Layer, LayerCounts
from tser_cli.energy.geometry import Geometry, geometry, uncountable
from tser_cli.energy.tally import fault, fault_message, tally
from tser_cli.errors import TserError, unknown


@dataclass
class Record:
    """What is gathered of one layer.

    Of each batch `tallies` has [3, steps, images] (see `tally`) and `faults` a scalar, all on the
    device. `order`: position among the layers in the order in which they ran.
    """

    module: nn.Conv2d | nn.Linear
    kind: str
    order: int = 0
    shape: tuple[int, ...] = ()
    geometry: Geometry | None = None
    fan_out_P: Tensor = field(default_factory=lambda: torch.empty(0))
    tallies: list[Tensor] = field(default_factory=list)
    faults: list[Tensor] = field(default_factory=list)


class SopCounter:
    """Gathers the counts of a network; `counting` puts its hooks on and takes them off."""

    def __init__(self, model: nn.Module, kinds: Mapping[str, str]) -> None:
        """Raises TserError where `kinds` does not fit `model`, or a layer can't be counted."""
        self.records = _records(model, kinds)
        self.owners = neuron_owners(model)
        self._neuron_updates: dict[str, int] = {}
        self._images: list[int] = []
        self._timesteps = 0

    def begin(self, images: int, timesteps: int) -> None:
        """A batch begins. A call of the model says so by itself.

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
        record, x = self.records[name], _first(args, kwargs).detach()
        self._admit(name, record, x)
        steps = self._steps(name, len(x))
        record.fan_out_P = record.fan_out_P.to(x.device)
        with torch.no_grad():
            totals = tally(x, record.kind, record.fan_out_P)
            record.tallies.append(totals.view(3, steps, -1))
            if record.kind != REAL:
                record.faults.append(fault(x, record.kind))

    def watch_neurons(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Pre-hook of a layer of spiking neurons, whose input is [T*N, ...]."""
        x = _first(args, kwargs)
        if self._steps(name, len(x)) != self._timesteps:
            raise TserError(f"the neurons {name} were not run at every time step")
        self._neuron_updates[name] = x[0].numel()

    def counts(self) -> Counts:
        """Everything counted so far, read from the device.

        Raises TserError where nothing ran, a layer was passed over in a batch, or a layer met data
        of another kind than it was declared to meet.
        """
        for name, record in self.records.items():
            if not self._images or len(record.tallies) != len(self._images):
                raise TserError(
                    f"layer {name} was seen in {len(record.tallies)} of {len(self._images)} calls "
                    "of the network; count whole calls, of layers that are called as modules"
                )
        self._check_data()
        ran = sorted(self.records, key=lambda name: self.records[name].order)
        layers = tuple(self._layer_counts(name) for name in ran)
        return Counts(self._timesteps, sum(self._images), layers)

    def _admit(self, name: str, record: Record, x: Tensor) -> None:
        if len(record.tallies) >= len(self._images):
            raise TserError(
                f"layer {name} ran outside a call of the network, or twice in one; call the "
                "network itself, and give every use of a layer a module of its own"
            )
        if record.geometry is None:
            record.order = sum(other.geometry is not None for other in self.records.values())
            record.shape = tuple(x.shape[1:])
            record.geometry = geometry(record.module, tuple(x.shape))
            record.fan_out_P = record.geometry.fan_out_P
        if tuple(x.shape[1:]) != record.shape:
            raise TserError(
                f"layer {name} met an input of {tuple(x.shape[1:])} after one of "
                f"{record.shape}; count images of one size at a time"
            )

    def _steps(self, name: str, batch: int) -> int:
        """The time steps folded into a batch: T, or 1 where it is computed once an image."""
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
        checked = [name for name, record in self.records.items() if record.faults]
        if not checked:
            return
        worst = torch.stack([torch.stack(self.records[name].faults).amax() for name in checked])
        for name, code in zip(checked, worst.tolist(), strict=True):
            if code:
                raise TserError(fault_message(name, self.records[name].kind, code))

    def _layer_counts(self, name: str) -> LayerCounts:
        record = self.records[name]
        counted = torch.cat(record.tallies, dim=-1).cpu()
        executed_T = torch.zeros(self._timesteps, dtype=torch.int64)
        executed_T[: counted.shape[1]] = 1
        padded = counted.new_zeros(3, self._timesteps, counted.shape[2])
        padded[:, : counted.shape[1]] = counted
        nonzero_TI, events_TI, value_TI = padded.numpy()
        updates = [
            self._neuron_updates.get(n, 0) for n, owner in self.owners.items() if owner == name
        ]
        return LayerCounts(
            layer=_facts(name, record),
            neuron_updates=sum(updates),
            executed_T=executed_T.numpy(),
            nonzero_TI=nonzero_TI,
            events_TI=events_TI,
            value_TI=value_TI,
        )


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
        watched += [(r.module, partial(counter.watch_layer, n)) for n, r in counter.records.items()]
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


def _records(model: nn.Module, kinds: Mapping[str, str]) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for name, module in model.named_modules():
        problem = uncountable(module)
        if problem:
            raise TserError(f"layer {name} can't be counted: {problem}")
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if kinds.get(name) not in INPUT_KINDS:
            kind = kinds.get(name, "")
            raise TserError(f"layer {name}: {unknown('kind of input', kind, INPUT_KINDS)}")
        records[name] = Record(module, kinds[name])
    surplus = sorted(kinds.keys() - records.keys())
    if surplus or not records:
        raise TserError(
            f"no Conv2d or Linear layer is called {', '.join(surplus)}"
            if surplus
            else "the network has no Conv2d or Linear layer; there is nothing to count"
        )
    return records


def _facts(name: str, record: Record) -> Layer:
    assert record.geometry is not None
    bias = record.module.bias
    return Layer(
        name=name,
        type="conv" if isinstance(record.module, nn.Conv2d) else "linear",
        input_kind=record.kind,
        neurons_in=record.geometry.neurons_in,
        outputs=record.geometry.outputs,
        macs=record.geometry.macs,
        macs_formula=record.geometry.macs_formula,
        weight_bytes=record.module.weight.element_size(),
        bias_bytes=0 if bias is None else bias.element_size(),
    )


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x = args[0] if args else next(iter(kwargs.values()))
    assert isinstance(x, Tensor), "the first argument of a layer or model is its input"
    return x
