"""Counting synaptic operations while a network runs.

    with counting(model, model.input_kinds()) as counter:
        for images_NCHW, _ in loader:
            model(images_NCHW, timesteps=T)
    counts = counter.counts()

1. `watch` shows the counter every call of a layer, by hooks.
2. `DeclaredPlan` says where the steps and images of that call are.
3. `LayerCall` sums what the layer was fed with, each input times the outputs that it feeds.
4. `Counter` keeps the sums on the device until `counts` reads them, layer by layer.

For networks that declare nothing `any_network` watches functions and finds a plan by trial: what
the counter asks of both is below, as `Met` and `Plan`.

The totals are integers, exact for the inputs that the layers met, whatever the batch split, memory
layout, device or autocast; rounding can only change them by changing a spike. An ANN's operations
do not depend on the data: one image is enough.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError, unknown
from tser_cli.energy import tally
from tser_cli.energy.counts import (
    CONV,
    INPUT_KINDS,
    LINEAR,
    RANK,
    REAL,
    SIGNED,
    SPIKES,
    SUMS,
    Axes,
    ConvShape,
    Counts,
    Fed,
    LayerFacts,
    LayerRecord,
    NeuronRecord,
    Place,
    Tally,
)
from tser_cli.energy.neurons import is_spiking_neuron, neuron_class, neuron_layers

NEURON = "neuron"
Layer = nn.Conv2d | nn.Linear
Key = tuple[str, str]
"""A name and a type of operation: one name may be a layer's and a product's."""
Shape = tuple[int, ...]
Position = tuple[int, int | None, tuple[Axes | None, ...]]
"""Of a call: which use of its layer, at which step (None: all or the first), by operand its axes"""
FindKind = Callable[[int, Tensor], Fed]


@contextmanager
def counting(
    model: nn.Module, kinds: Mapping[str, str], detailed: bool = False
) -> Iterator[Counter]:
    """Count what `model` does inside the `with`; the hooks are always taken off again.

    `kinds`: what feeds each Conv2d and Linear, by qualified name: "real", "spikes" or "sums".
    `detailed`: also count operations without those on weights of zero. A compiled model runs
    uncompiled meanwhile. Raises TserError where `kinds` does not fit the model, or a layer can't be
    counted.
    """
    plain: nn.Module = getattr(model, "_orig_mod", model)
    layers, owners = checked_layers(plain, kinds), neuron_owners(plain)
    counter = Counter(DeclaredPlan(kinds, layers, owners), detailed)
    with ExitStack() as stack:
        # Compiled code would pass the hooks by. Importing dynamo is slow, and a process that has
        # compiled nothing has not done so.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        watch(plain, counter, layers, owners, stack)
        yield counter


def watch(
    model: nn.Module,
    counter: Counter,
    layers: Mapping[str, Layer],
    neurons: Iterable[str],
    stack: ExitStack,
) -> None:
    """Show `counter` the calls of the model and of these modules by hooks, until `stack` closes."""

    def begins(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        counter.begin(args, kwargs)

    def runs(
        name: str, conv: ConvShape | None, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        stored = tally.stored(layer, layer.weight)
        counter.operation(LayerCall(name, x, layer.weight, layer.bias, stored, conv, declared=True))

    def sends(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        counter.neurons(name, module, output)

    # Hooks, and not the mode that any_network needs: a mode is asked for every function of torch,
    # where a hook costs one call a layer. Hooks miss functional calls and products, but these have
    # no name that a network could declare.
    stack.callback(model.register_forward_pre_hook(begins, with_kwargs=True).remove)
    for name, layer in layers.items():
        hook = partial(runs, name, tally.shape_of(layer) if isinstance(layer, nn.Conv2d) else None)
        # Before the layer runs: one that works in place would leave other inputs behind.
        stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
    for name in neurons:
        hooked = model.get_submodule(name).register_forward_hook(partial(sends, name))
        stack.callback(hooked.remove)


class Counter:
    """Keeps the counts of a network, whoever watches it and wherever its plan comes from.

    `kinds_met`: of each layer, in how many calls it was fed with what ("": zeros alone).
    `scales`: of each layer, the scales of all its calls but those of zeros (see `Fed`). `declared`:
    what feeds layers that met nothing but zeros, spikes where it does not say; no scale is folded
    into their weights.
    `weights_alone`: what multiplies weights with each other, as a chip would have done before it
    runs, and is not counted. `frames`: see `Counts`. `detailed`: also keep what only conventions,
    an audit and the share of zeros need.
    """

    def __init__(self, plan: Plan | None, detailed: bool = False) -> None:
        self.plan, self.detailed, self.frames = plan, detailed, False
        self.declared: Mapping[str, str] = {}
        self.kinds_met: dict[str, collections.Counter[str]] = {}
        self.scales: dict[str, set[float]] = {}
        self.images: list[int] = []
        self._before = 0  # images before this batch
        self.records: dict[tuple[str, str, int], LayerRecord] = {}
        self.neuron_records: dict[str, NeuronRecord] = {}
        self.weights_alone: set[str] = set()
        self._guesses: dict[tuple[str, int], Fed] = {}
        # How often each layer has run in this batch, which is all that tells its calls apart.
        self._ordinals: collections.Counter[Key] = collections.Counter()
        self._call = 0

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Note that the network is called; return whether a batch begins, not the next step of one.

        Raises TserError where the batch before was not completed, or this one is of another kind.
        """
        assert self.plan is not None, "a plan is made before the first batch"
        x = first_tensor(args or kwargs)
        if x is None:
            raise TserError("the network was called without a tensor")
        if self.images and self._call < self.plan.calls - 1:
            self._call += 1
            return False
        # Not after the last layer: which one that is can't be known where layers may be skipped.
        self._end_batch()
        self._ordinals.clear()
        self._call = 0
        self._before = sum(self.images)
        self.images.append(self.plan.begin(x, args, kwargs))
        return True

    def operation(self, met: Met) -> None:
        """Count one operation. Raises TserError where it can't be placed."""
        use, place = self.place((met.name, met.type), met.shapes())
        if not any(place.axes):
            self.weights_alone.add(met.name)
            return
        name = use_name(met.name, use)
        find, key = partial(self._find_kind, name), (met.name, met.type, use)
        with torch.no_grad():
            # The first call decides what the layer is: its facts do not depend on the data, and a
            # later call of another size is an error, since figures an image would mix two networks.
            if key not in self.records:
                self.kinds_met[name] = collections.Counter()
                self.scales[name] = {0.0} if name in self.declared else set()
                self.records[key] = met.described(name, place, find)
            call, fed = met.tallied(self.records[key], place, find, self.detailed)
        # Kept on the device: a sum that the host read here would make it wait at every layer.
        self.records[key].add(call)
        self.kinds_met[name][fed.kind] += 1
        if fed.kind:
            self.scales[name].add(fed.scale)

    def neurons(self, name: str, module: nn.Module, spikes: Tensor) -> None:
        """Count the updates, and in detail the spikes, of a layer of neurons that has just run."""
        _, place = self.place((name, NEURON), (tuple(spikes.shape),))
        record = self.neuron_records.get(name)
        if record is None:
            record = self.neuron_records[name] = NeuronRecord(name, neuron_class(module))
        with torch.no_grad():
            record.add(spikes, place, self.detailed)

    def place(self, key: Key, shapes: tuple[Shape, ...]) -> tuple[int, Place]:
        """Return the use and place of a call, the next one of its layer. Raises TserError."""
        assert self.plan is not None, "a batch has a plan"
        if not self.images:
            raise TserError(f"layer {key[0]} ran outside a call of the network; call that itself")
        use, step, axes = self.plan.place(key, self._ordinals[key], shapes, self.images[-1])
        if self.plan.calls > 1 and step != self._call:
            raise TserError(f"layer {key[0]} does not run as often in every step")
        self._ordinals[key] += 1
        batch, images = len(self.images) - 1, self.images[-1]
        return use, Place(batch, self._before, images, self.plan.timesteps, step, axes)

    def counts(self) -> Counts:
        """Return everything counted so far, read from the device.

        Raises TserError where nothing ran, a batch was not completed, or a layer met data of
        another kind than it was declared to meet.
        """
        if not self.images or self.plan is None:
            raise TserError("the network was not called; there is nothing to count")
        self._end_batch()
        records = self.records.values()
        checked = [(r, r.fault) for r in records if r.fault is not None]
        if checked:
            # One read of the device for all layers.
            codes = torch.stack([fault for _, fault in checked]).tolist()
            for (record, _), code in zip(checked, codes, strict=True):
                if code:
                    name = record.facts.name
                    raise TserError(tally.fault_message(name, self.kind(name), code))
        owners = self.plan.owners([record.facts.name for record in records])
        updates: collections.Counter[str] = collections.Counter()
        for name, neurons in self.neuron_records.items():
            updates[owners.get(name, "")] += neurons.updates
        names = [(record, record.facts.name) for record in records]
        layers = [r.counts(self.kind(name), updates[name], self.scale(name)) for r, name in names]
        found = [neurons.counts(sum(self.images)) for neurons in self.neuron_records.values()]
        facts = self.plan.timesteps, sum(self.images)
        return Counts(*facts, tuple(layers), tuple(found), self.frames)

    def scale(self, name: str) -> float:
        """Return c where all calls of a layer met 0 and c (or -c) alone, 1 without such a c."""
        sizes = {abs(scale) for scale in self.scales[name]}
        return sizes.pop() or 1.0 if len(sizes) == 1 else 1.0

    def kind(self, name: str) -> str:
        """Return what feeds a layer, all its calls together."""
        if self.scale(name) != 1:
            return SIGNED if min(self.scales[name]) < 0 else SPIKES
        # One batch of real values makes it a layer of multiply-accumulates, whatever came before:
        # hardware that only adds could not compute it.
        return max(self.kinds_met[name], key=RANK.__getitem__) or self.declared.get(name, SPIKES)

    def _find_kind(self, name: str, operand: int, x: Tensor) -> Fed:
        assert self.plan is not None
        if self.plan.kinds is not None:
            return Fed(self.plan.kinds[name])
        # A guess that still holds costs one look at the data, where finding out costs several.
        guess = self._guesses.get((name, operand), Fed(""))
        if guess.kind == SPIKES:
            if x.is_floating_point() and x.numel() and tally.are_spikes(x):
                return guess
        elif guess.scale > 0 and tally.has_scale(x, guess.scale):
            return guess
        kind, least, most = tally.find_range(x)
        scale = 0.0
        if kind in (SPIKES, SIGNED):
            scale = 1.0 if kind == SPIKES else -1.0
        elif kind and 0.0 not in self.scales[name]:
            scale = tally.find_scale(x)
        fed = self._guesses[(name, operand)] = Fed(kind, scale, least, most)
        return fed

    def _end_batch(self) -> None:
        if not self.images or self.plan is None:
            return
        for key, expected in self.plan.expected.items():
            if self._ordinals[key] != expected:
                raise TserError(
                    f"layer {key[0]} ran {self._ordinals[key]} times in a batch, not {expected}; "
                    "count whole calls of the network, all time steps of each batch, and layers "
                    "that are called as modules"
                )


def use_name(name: str, use: int) -> str:
    """Return what a use of a layer in a batch is listed as: the second one as "name#2"."""
    return name if use == 0 else f"{name}#{use + 1}"


class Plan(Protocol):
    """Where the steps and images of every call of a network are.

    `calls`: how often the network is called for a batch. `kinds`: what feeds each layer, None where
    that is found from the data, call by call. `expected`: how often each layer runs in a batch.
    """

    @property
    def timesteps(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def kinds(self) -> Mapping[str, str] | None: ...
    @property
    def expected(self) -> Mapping[Key, int]: ...

    def begin(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return the images of the batch that a call of the network begins. Raises TserError."""

    def place(self, key: Key, ordinal: int, shapes: tuple[Shape, ...], images: int) -> Position:
        """Place a layer's call by the calls before it in the batch. Raises TserError."""

    def owners(self, ran: list[str]) -> Mapping[str, str]:
        """Return the layer that the updates of each layer of neurons are listed with."""


class Met(Protocol):
    """An operation as a watcher met it, just before it is computed."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    def shapes(self) -> tuple[Shape, ...]:
        """Return the sizes of what is fed: the input's, or both factors' of a product."""

    def described(self, name: str, place: Place, find: FindKind) -> LayerRecord:
        """Return the record of a layer, with what its first call shows."""

    def tallied(
        self, record: LayerRecord, place: Place, find: FindKind, detailed: bool
    ) -> tuple[Tally, Fed]:
        """Return the count of the call, and what it was fed with."""


@dataclass
class DeclaredPlan:
    """The plan of a network that declares its inputs and folds time into the batch, as ours do.

    `names`: of each layer of neurons, the layer that its updates are listed with.
    """

    kinds: Mapping[str, str]
    layers: Mapping[str, Layer]
    names: Mapping[str, str] = field(default_factory=dict)
    timesteps: int = 0
    calls: int = 1

    @property
    def expected(self) -> Mapping[Key, int]:
        """Return one call of each layer; neurons without weights may be shared by two places."""
        types = {n: CONV if isinstance(m, nn.Conv2d) else LINEAR for n, m in self.layers.items()}
        return dict.fromkeys(types.items(), 1)

    def begin(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Take T from a call `model(images_NCHW, timesteps=T)`; an ANN is called without."""
        timesteps = int(args[1] if len(args) > 1 else kwargs.get("timesteps", 1))
        if self.timesteps not in (0, timesteps):
            raise TserError(
                f"a batch of {timesteps} time steps follows one of {self.timesteps}; count each "
                "number of time steps by itself"
            )
        self.timesteps = timesteps
        return len(x)

    def place(self, key: Key, ordinal: int, shapes: tuple[Shape, ...], images: int) -> Position:
        """Return that a call holds all steps, or the first alone, by the size of its batch."""
        (name, of), (shape,) = key, shapes
        if of != NEURON and ordinal:
            raise TserError(
                f"layer {name} ran outside a call of the network, or twice in one; call the "
                "network itself, and give every use of a layer a module of its own"
            )
        # Other shapes say too little: [T, N, features] is also N = T images of N vectors.
        wanted = {CONV: "[T*N, C, H, W]", LINEAR: "[T*N, features]"}.get(of)
        if wanted and len(shape) != 1 + wanted.count(","):
            raise TserError(
                f"layer {name} met an input of {shape}, not {wanted}: it is "
                "not clear which axis is time and which images; count such a network with "
                'count_operations(network, layout="time-first") or another layout'
            )
        if shape[0] == self.timesteps * images:
            return 0, None, (Axes(0, folded=True),)
        if shape[0] != images:
            raise TserError(
                f"{name} saw a batch of {shape[0]}, which is neither {images} images nor "
                f"{self.timesteps} time steps of them; fold time into the batch, time outermost"
            )
        if of == NEURON:
            raise TserError(f"the neurons {name} were not run at every time step")
        # The stem: the same image at every step, so the network computes it once.
        return 0, None, (Axes(0),)

    def owners(self, ran: list[str]) -> Mapping[str, str]:
        return self.names


@dataclass(frozen=True)
class LayerCall:
    """A call of a convolution or linear layer; `stored`: see `tally.stored`.

    `declared`: whether its kind of input is what the network says, and still to be checked.
    """

    name: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stored: tuple[int, int]
    conv: ConvShape | None = None
    declared: bool = False

    @property
    def type(self) -> str:
        return LINEAR if self.conv is None else CONV

    def shapes(self) -> tuple[Shape, ...]:
        return (tuple(self.x.shape),)

    def described(self, name: str, place: Place, find: FindKind) -> LayerRecord:
        axes, x = self._rows(place)
        weight, shape = tuple(self.weight.shape), tuple(self.x.shape)
        found = tally.layer_geometry(self.conv, weight, shape, x.shape[1])
        # A linear layer's rows have their inner vectors with them, a convolution's maps are apart.
        times = axes.inner if self.conv is not None else 1
        facts = LayerFacts(
            name=name,
            type=self.type,
            input_kind="",
            neurons_in=found.neurons_in * times,
            outputs=found.outputs * times,
            macs=found.macs * times,
            macs_formula=found.macs_formula * times,
            weight_bytes=self.stored[0],
            bias_bytes=0 if self.bias is None else self.bias.element_size(),
            parameters=self.weight.numel() + (0 if self.bias is None else self.bias.numel()),
            fan_in=tally.fan_in(self.conv, weight),
            weight_bits=self.stored[1],
            conv=self.conv,
        )
        return LayerRecord(facts, found.fan_out_P.to(x.device), tuple(x.shape[1:]))

    def tallied(
        self, record: LayerRecord, place: Place, find: FindKind, detailed: bool
    ) -> tuple[Tally, Fed]:
        axes, x = self._rows(place)
        if tuple(x.shape[1:]) != record.shape:
            raise TserError(
                f"layer {record.facts.name} met an input of {tuple(x.shape[1:])} after one of "
                f"{record.shape}; count images of one size at a time"
            )
        fed = find(0, x)
        kind, scaled = fed.kind, fed.kind in (SUMS, REAL) and fed.scale != 0
        if not x.is_floating_point():
            x = x.float()
        if not self.declared and kind not in (SPIKES, REAL) and fed.least < 0:
            x = x.abs()  # an accumulate of -1 costs as much as one of 1
        if scaled:
            # Should another call bring another scale, real values have no events, and sums these.
            counted = tally.count(x.ne(0), SPIKES, record.fan_out_P)
            counted[2] *= int(abs(fed.scale)) if kind == SUMS else 1
        else:
            counted = tally.count(x, kind if kind in (SUMS, REAL) else SPIKES, record.fan_out_P)
        # what was just looked at, and is small, has no fault
        sound = fed.least >= 0 and fed.most * tally.summed(x) < tally.EXACT
        if (kind == SUMS and not scaled and not sound) or (self.declared and kind != REAL):
            # Whether a declaration holds is looked at in the end: nothing waits for the device.
            fault = tally.fault(x, kind)
            record.fault = fault if record.fault is None else torch.maximum(record.fault, fault)
        shape = (axes.steps(place.timesteps), place.images, -1)
        call = Tally(place, counted.view(3, *shape).sum(-1), kind in ("", SPIKES))
        if detailed:
            events_B = None if kind == REAL else counted[1]
            effective_B = tally.effective_operations(
                x, self.weight, self.conv, tuple(self.x.shape[2:]), record.fan_out_P, events_B
            )
            call.effective, call.total = effective_B.view(shape).sum(-1), call.tally[0]
            if kind == SUMS:
                # float64, as the whole of a row may pass 2^24 where its channels do not.
                total_B = x.flatten(1).sum(1, dtype=torch.float64).round().long()
                call.total = total_B.view(shape).sum(-1)
        return call, fed

    def _rows(self, place: Place) -> tuple[Axes, Tensor]:
        """Return where steps and images are, and the input in rows of one step of one image.

        Rows are as `tally.count` takes them: [B, C, H, W], [B, C, P, 1] or [B, features].
        """
        (axes,) = place.axes
        assert axes is not None, "a layer is fed with something of each image"
        rows = axes.rows(self.x.detach())
        if self.conv is None:
            return axes, rows.reshape(len(rows), -1)
        maps = rows.flatten(0, 1) if axes.inner > 1 else rows
        return axes, maps if maps.dim() == 4 else maps.flatten(2).unsqueeze(-1)


def checked_layers(model: nn.Module, kinds: Mapping[str, str]) -> dict[str, Layer]:
    """Return the layers of `model`. Raises TserError where one can't be counted by `kinds`."""
    layers: dict[str, Layer] = {}
    for name, module in model.named_modules():
        problem = tally.uncountable(module)
        if problem:
            raise TserError(f"layer {name} can't be counted: {problem}")
        if isinstance(module, Layer):
            if kinds.get(name) not in INPUT_KINDS:
                kind = kinds.get(name, "")
                raise TserError(f"layer {name}: {unknown('kind of input', kind, INPUT_KINDS)}")
            layers[name] = module
    surplus = sorted(kinds.keys() - layers.keys())
    if surplus:
        raise TserError(f"no Conv2d or Linear layer is called {', '.join(surplus)}")
    if not layers:
        raise TserError("the network has no Conv2d or Linear layer; there is nothing to count")
    for name, module in neuron_layers(model):
        if not is_spiking_neuron(module):
            raise TserError(
                f"the neurons {name} are {type(module).__module__}.{type(module).__name__}, whose "
                "time steps and updates are not known here; count such a network with "
                "count_operations(network, layout=...)"
            )
    return layers


def neuron_owners(model: nn.Module) -> dict[str, str]:
    """For each layer of spiking neurons, the layer that its updates are listed with.

    That is the Conv2d or Linear defined last before it, or the first one where none is.
    """
    owners: dict[str, str] = {}
    layer = next((n for n, m in model.named_modules() if isinstance(m, Layer)), "")
    for name, module in model.named_modules():
        if isinstance(module, Layer):
            layer = name
        elif is_spiking_neuron(module):
            owners[name] = layer
    return owners


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor of an output or of arguments, None without one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((x for x in map(first_tensor, value) if x is not None), None)
    return None
