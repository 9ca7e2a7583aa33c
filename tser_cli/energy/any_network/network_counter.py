"""Counting the operations of any network, whatever gives it its time steps.

    with count_operations(network, layout="time-first") as counter:
        network(x_TNCHW)
    counts = counter.counts()

The first call is tried out on a copy of the network with a few images, to find out where steps
and images are (see `plan.py`). What feeds a layer is found from the data, call by call.
States are reset before each batch, by the library that the neurons belong to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError, unknown
from tser_cli.energy.any_network.find_layout import find_plan
from tser_cli.energy.any_network.layouts import AUTO, FOLDED, LAYOUTS, STEPWISE, TIME_FIRST, Axes
from tser_cli.energy.any_network.neurons import reset_states
from tser_cli.energy.any_network.plan import Plan
from tser_cli.energy.any_network.watch import (
    NEURON,
    Batch,
    Firing,
    Operation,
    count_layer,
    count_product,
    first_tensor,
    intercepted,
)
from tser_cli.energy.conventions.conventions import Auxiliary
from tser_cli.energy.counts import REAL, SIGNED, SPIKES, SUMS, Counts, Record, layer_counts
from tser_cli.energy.tally import fault, find_kind

RANK = {"": 0, SPIKES: 1, SIGNED: 2, SUMS: 3, REAL: 4}
"""Kinds of inputs: each takes in those before it."""


class NetworkCounter:
    """Gathers the counts of a network; `count_operations` makes one and takes it off again.

    `kinds_met`: of each layer, in how many calls it was fed with what ("": zeros alone). `plan`:
    what was found out about the network, None before its first call. `others`: norms, pools and
    neurons as syops counts them, where it is `detailed`. `declared`: what feeds layers that met
    nothing but zeros; spikes, where it does not say.
    """

    def __init__(self, network: nn.Module, layout: str, timesteps: int, detailed: bool) -> None:
        if layout not in (*LAYOUTS, AUTO):
            raise TserError(unknown("layout", layout, (*LAYOUTS, AUTO)))
        self.network, self.layout, self.detailed = network, layout, detailed
        self.plan: Plan | None = None
        self.kinds_met: dict[str, Counter[str]] = {}
        self.declared: Mapping[str, str] = {}
        self.others = Auxiliary()
        self._records: dict[tuple[str, str, int], Record] = {}
        self._firing: dict[str, Firing] = {}
        self._guesses: dict[tuple[str, int], str] = {}
        self._ordinals: Counter[tuple[str, str]] = Counter()
        self._images: list[int] = []
        self._timesteps, self._step = timesteps, 0

    def __deepcopy__(self, memo: Any) -> NetworkCounter:
        # A copy of the network carries the hook along, which then finds that it is not meant.
        return self

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the network: a batch begins, or the next step of one."""
        if module is not self.network:
            return
        x = first_tensor(args if args else tuple(kwargs.values()))
        if x is None:
            raise TserError("the network was called without a tensor")
        if self.plan is None:
            reset_states(self.network)
            self.plan = find_plan(self.network, self.layout, self._timesteps, args, kwargs)
            self._timesteps = self.plan.timesteps
        if self.plan.layout == STEPWISE and self._images and self._step < self._timesteps - 1:
            self._step += 1
            return
        self._end_batch()
        self._ordinals.clear()
        self._step = 0
        self._images.append(self._count_images(x, self.plan.layout))
        reset_states(self.network)

    def operation(self, met: Operation) -> None:
        """Count one operation. Raises TserError where it can't be placed."""
        if self.plan is None or not self._images:
            return
        use, batch, axes = self._place((met.layer, met.type), met.shapes())
        key = (met.layer, met.type, use)
        if key not in self._records:
            name = met.layer if use == 0 else f"{met.layer}#{use + 1}"
            self._records[key] = Record(name, met.type, kind="")
        record = self._records[key]
        find = partial(self._find_kind, record.name)
        if met.product is not None:
            entry, kind = count_product(record, met, axes, batch, find)
        else:
            assert axes[0] is not None, "a layer is fed with something of each image"
            entry, kind = count_layer(record, met, axes[0], batch, find)
        record.entries.append(entry)
        self.kinds_met.setdefault(record.name, Counter())[kind] += 1
        record.kind = max(record.kind, kind, key=lambda name: RANK[name])

    def left(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Count the updates and spikes of a layer of neurons that has just run."""
        if self.detailed and self._images:
            with torch.no_grad():
                self.others.add(module, args, output)
        spikes = first_tensor(output)
        if not self.plan or name not in self.plan.neurons or not self._images or spikes is None:
            return
        _, batch, axes = self._place((name, NEURON), (tuple(spikes.shape),))
        assert axes[0] is not None, "neurons hold something of each image"
        firing = self._firing.setdefault(name, Firing(name, self.plan.neurons[name]))
        with torch.no_grad():
            firing.add(spikes, axes[0], batch)

    def counts(self) -> Counts:
        """Return everything counted so far, read from the device.

        Raises TserError where nothing ran, or a batch was not completed.
        """
        if not self._images:
            raise TserError("the network was not called; there is nothing to count")
        self._end_batch()
        updates: Counter[str] = Counter()
        owners = self._owners()
        for name, firing in self._firing.items():
            updates[owners.get(name, "")] += firing.updates
        layers = []
        for record in self._records.values():
            record.kind = record.kind or self.declared.get(record.name, SPIKES)
            layers.append(layer_counts(record, self._timesteps, updates[record.name]))
        neurons = [f.counts(self._timesteps, self._images) for f in self._firing.values()]
        return Counts(self._timesteps, sum(self._images), tuple(layers), tuple(neurons))

    def kinds(self) -> dict[str, str]:
        """Return what feeds each layer, as it was found; "zeros alone" where nothing else came."""
        return {
            record.name: record.kind if any(self.kinds_met[record.name]) else "zeros alone"
            for record in self._records.values()
        }

    def differing(self) -> dict[str, dict[str, int]]:
        """Return the layers that were fed with one kind in some calls and another in others."""
        met = {
            name: {k: n for k, n in kinds.items() if k} for name, kinds in self.kinds_met.items()
        }
        return {name: kinds for name, kinds in met.items() if len(kinds) > 1}

    def _place(
        self, key: tuple[str, str], shapes: tuple[tuple[int, ...], ...]
    ) -> tuple[int, Batch, tuple[Axes | None, ...]]:
        assert self.plan is not None
        stepwise = self.plan.layout == STEPWISE
        use, step, axes = self.plan.place(key, self._ordinals[key])
        self._ordinals[key] += 1
        images = self._images[-1]
        for found, shape in zip(axes, shapes, strict=True):
            if found and not found.fits(shape, self._timesteps, images):
                raise TserError(
                    f"layer {key[0]} met an input of {shape}, which does not hold {images} images "
                    "as it did in the trial runs; count images of one size at a time"
                )
        if stepwise and step != self._step:
            raise TserError(f"layer {key[0]} does not run as often in every step")
        batch = Batch(len(self._images) - 1, images, self._timesteps, step, self.detailed)
        return use, batch, axes

    def _find_kind(self, name: str, operand: int, x: Tensor) -> str:
        """Return what a call is fed with: a guess that still holds costs one look at the data."""
        guess = self._guesses.get((name, operand))
        if guess == SPIKES and x.is_floating_point() and not int(fault(x, SPIKES)):
            return SPIKES
        kind = self._guesses[(name, operand)] = find_kind(x)
        return kind

    def _owners(self) -> dict[str, str]:
        """Return the layer that the updates of a layer of neurons are listed with: the one before
        it.
        """
        assert self.plan is not None
        owners: dict[str, str] = {}
        last = next(iter(self._records.values())).name
        for name, kind in self.plan.order:
            if kind == NEURON:
                owners.setdefault(name, last)
            else:
                last = name
        return owners

    def _count_images(self, x: Tensor, layout: str) -> int:
        if layout == TIME_FIRST and len(x) != self._timesteps:
            raise TserError(
                f"a batch of {len(x)} time steps follows one of {self._timesteps}; count each "
                "number of time steps by itself"
            )
        if layout == FOLDED and len(x) % self._timesteps:
            raise TserError(f"{len(x)} rows are no whole number of {self._timesteps} time steps")
        if layout == TIME_FIRST:
            return x.shape[1]
        return len(x) // self._timesteps if layout == FOLDED else len(x)

    def _end_batch(self) -> None:
        if not self._images:
            return
        assert self.plan is not None, "a batch has a plan"
        for key, family in self.plan.families.items():
            expected = family.calls(self._timesteps)
            if self._ordinals[key] != expected:
                raise TserError(
                    f"layer {key[0]} ran {self._ordinals[key]} times in a batch, not {expected} "
                    "times as in the trial runs; count whole batches, and all time steps of each"
                )


@contextmanager
def count_operations(
    network: nn.Module, layout: str = AUTO, timesteps: int = 0, detailed: bool = False
) -> Iterator[NetworkCounter]:
    """Count what `network` does inside the `with`, exactly; everything is taken off again.

    `layout`: how the network is called with T steps (time-first, folded, stepwise or inside), or
    auto, to find it from the first call. `timesteps`: T, which only time-first shows by itself and
    inside may be found. `detailed`: also gather what the conventions of others and an audit need.
    A compiled network runs uncompiled meanwhile, since compiled code can't be watched.
    Raises TserError where the network can't be counted, or its layout can't be told.
    """
    plain: nn.Module = getattr(network, "_orig_mod", network)
    counter = NetworkCounter(plain, layout, timesteps, detailed)
    with ExitStack() as stack:
        hook = plain.register_forward_pre_hook(counter.begin, with_kwargs=True)
        stack.callback(hook.remove)
        stack.enter_context(intercepted(plain, counter.operation, counter.left))
        yield counter
