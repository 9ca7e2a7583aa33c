"""What a network does with its time steps and images: found by trial runs, before it is counted.

A network is run on 2 images, on 3, and where its input has a time axis for T + 1 steps: an axis
that grows with N holds the images, one that grows with T the steps, one that grows with both has
time folded into the batch. So T = N, heads = T or tokens = N mislead nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from tser_cli.base.errors import TserError
from tser_cli.energy.any_network.layouts import (
    FOLDED,
    INSIDE,
    STEPWISE,
    TIME_FIRST,
    Presentation,
)
from tser_cli.energy.any_network.watch import TrialCall, TrialRun, survey, trace
from tser_cli.energy.counter import NEURON, Key, Shape, first_tensor
from tser_cli.energy.counts import Axes


@dataclass(frozen=True)
class Family:
    """How the calls of one layer go on: `uses` of it at a step, each with its axes by operand.

    `loops`: whether each call computes one step, and `period` how they follow each other: True
    where the uses of a step come together, False where the steps of a use do.
    """

    uses: tuple[tuple[Axes | None, ...], ...]
    loops: bool
    period: bool = True

    def place(self, ordinal: int, timesteps: int) -> tuple[int, int | None]:
        """Return the use and the step of a layer's call, by how many came before it in the
        batch.
        """
        if not self.loops:
            return ordinal, None
        if self.period:
            return ordinal % len(self.uses), ordinal // len(self.uses)
        return ordinal // timesteps, ordinal % timesteps

    def calls(self, timesteps: int) -> int:
        """Return how many calls of the layer a batch has."""
        return len(self.uses) * (timesteps if self.loops else 1)


@dataclass(frozen=True)
class TrialPlan:
    """How to count a network: `families` by layer and type; `survey` is the first trial run,
    `order` that in which layers run."""

    layout: str
    timesteps: int
    families: dict[Key, Family]
    survey: TrialRun = field(default_factory=TrialRun)
    order: tuple[Key, ...] = ()
    kinds: None = None  # they are found from the data

    @property
    def neurons(self) -> dict[str, str]:
        """Return the class of each layer of neurons, by name."""
        return self.survey.neurons

    @property
    def calls(self) -> int:
        """Return how often the network is called for a batch."""
        return self.timesteps if self.layout == STEPWISE else 1

    @cached_property
    def expected(self) -> Mapping[Key, int]:
        """Return how often each layer runs in a batch."""
        return {key: family.calls(self.timesteps) for key, family in self.families.items()}

    def begin(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return the images of a batch. Raises TserError where it has another number of steps."""
        if self.layout == TIME_FIRST and len(x) != self.timesteps:
            raise TserError(
                f"a batch of {len(x)} time steps follows one of {self.timesteps}; count each "
                "number of time steps by itself"
            )
        if self.layout == FOLDED and len(x) % self.timesteps:
            raise TserError(f"{len(x)} rows are no whole number of {self.timesteps} time steps")
        if self.layout == TIME_FIRST:
            return x.shape[1]
        return len(x) // self.timesteps if self.layout == FOLDED else len(x)

    def place(
        self, key: Key, ordinal: int, shapes: tuple[Shape, ...], images: int
    ) -> tuple[int, int | None, tuple[Axes | None, ...]]:
        """Use, step and axes of a call. Raises TserError for one that no trial run had."""
        use, step, axes = self.learned(key, ordinal)
        for found, shape in zip(axes, shapes, strict=True):
            if found and not found.fits(shape, self.timesteps, images):
                raise TserError(
                    f"layer {key[0]} met an input of {shape}, which does not hold {images} images "
                    "as it did in the trial runs; count images of one size at a time"
                )
        return use, step, axes

    def learned(self, key: Key, ordinal: int) -> tuple[int, int | None, tuple[Axes | None, ...]]:
        """Use, step and axes of a call, whatever its size. Raises TserError for one too many."""
        family = self.families.get(key)
        if family is None or ordinal >= family.calls(self.timesteps):
            raise TserError(
                f"layer {key[0]} runs more often here than in the trial runs on a few images; "
                "a network that computes less or more by what it sees can't be counted"
            )
        use, step = family.place(ordinal, self.timesteps)
        return use, step, family.uses[use]

    def owners(self, ran: list[str]) -> Mapping[str, str]:
        """Return the layer that runs last before each layer of neurons."""
        owners: dict[str, str] = {}
        last = ran[0]
        for name, kind in self.order:
            if kind == NEURON:
                owners.setdefault(name, last)
            else:
                last = name
        return owners


def make_plan(network: nn.Module, presentation: Presentation, timesteps: int) -> TrialPlan:
    """Find out by trial runs where the steps and images of every operation are.

    `timesteps`: T, or 0 to find it, where the network makes its own steps. Raises TserError where
    the network fails or can't be counted, and where T is not what it does.
    """
    two = presentation.of(2)
    first = survey(network, two)
    if first_tensor(first.outputs) is None:
        kind = type(first.outputs[-1]).__name__
        raise TserError(f"the network gives no tensor of logits, but {kind}")
    names = set(first.neurons)
    # 2 and 3 images: a size that is one of them by chance can't grow from 2 to 3 by chance too.
    runs = [trace(network, two, names), trace(network, presentation.of(3), names)]
    if presentation.layout == INSIDE:
        timesteps = _own_steps(runs[0], runs[1], timesteps)
    longer = None
    if two.layout == TIME_FIRST:
        # Other layouts have no time axis to make longer, and some networks know their T.
        more = two.of(trial_images(len(two.x_TN)), more_steps=1)
        with suppress(TserError):
            longer = trace(network, more, names)
    families = learn_families(runs[0], runs[1], longer, presentation.layout, timesteps)
    if not any(key[1] != NEURON for key in families):
        raise TserError("the network computes no Conv, Linear or matmul; there is nothing to count")
    order = tuple(dict.fromkeys(call.key for call in runs[0].calls))
    return TrialPlan(presentation.layout, timesteps, families, first, order)


def learn_families(
    two: TrialRun, three: TrialRun, longer: TrialRun | None, layout: str, timesteps: int
) -> dict[Key, Family]:
    """Return how every layer's calls go on, from trial runs on 2 and 3 images and on T + 1
    steps.
    """
    by_key, wider, stretched = _grouped(two), _grouped(three), _grouped(longer) if longer else None
    for key in {*by_key, *wider}:
        if len(by_key.get(key, [])) != len(wider.get(key, [])):
            raise TserError(
                f"layer {key[0]} runs {len(by_key.get(key, []))} times for 2 images and "
                f"{len(wider.get(key, []))} times for 3; a network that goes over its images "
                "one by one, or computes by what it sees, can't be counted"
            )
    if layout == STEPWISE:
        return {key: _stepwise(key, calls, wider[key], timesteps) for key, calls in by_key.items()}
    loops = None if stretched else _votes(by_key, wider, timesteps)
    families = {}
    for key, calls in by_key.items():
        others = None if stretched is None else stretched.get(key, [])
        families[key] = _family(key, calls, wider[key], others, timesteps, loops)
    return _with_order(families, two.calls, timesteps)


def _grouped(run: TrialRun) -> dict[Key, list[TrialCall]]:
    groups: dict[Key, list[TrialCall]] = {}
    for call in run.calls:
        groups.setdefault(call.key, []).append(call)
    return groups


def _stepwise(key: Key, calls: list[TrialCall], wider: list[TrialCall], timesteps: int) -> Family:
    here = [call for call in calls if call.step == 0]
    if len(here) * timesteps != len(calls) or not here:
        raise TserError(
            f"layer {key[0]} does not run as often in every step; it can't be counted stepwise"
        )
    axes = [
        _axes(key[0], call.shapes, more.shapes, None, timesteps)
        for call, more in zip(here, wider, strict=False)
    ]
    return Family(tuple(axes), loops=True)


def _family(
    key: Key,
    calls: list[TrialCall],
    wider: list[TrialCall],
    longer: list[TrialCall] | None,
    timesteps: int,
    loops: bool | None,
) -> Family:
    if longer is None:
        return _guessed(key, calls, wider, timesteps, loops)
    if len(longer) == len(calls):
        found = [
            _axes(key[0], a.shapes, b.shapes, c.shapes, timesteps)
            for a, b, c in zip(calls, wider, longer, strict=True)
        ]
        return Family(tuple(found), loops=False)
    if len(calls) % timesteps or len(longer) != len(calls) // timesteps * (timesteps + 1):
        raise TserError(
            f"layer {key[0]} runs {len(calls)} times in {timesteps} time steps and {len(longer)} "
            f"times in {timesteps + 1}; it can't be told which call is which step"
        )
    uses = [
        _axes(key[0], c.shapes, w.shapes, None, timesteps)
        for c, w in zip(calls, wider, strict=True)
    ]
    return Family(tuple(uses[: len(calls) // timesteps]), loops=True)


def _guessed(
    key: Key, calls: list[TrialCall], wider: list[TrialCall], timesteps: int, loops: bool | None
) -> Family:
    found = []
    for call, more in zip(calls, wider, strict=True):
        axes = _axes(key[0], call.shapes, more.shapes, None, timesteps)
        found.append(
            tuple(
                a and guess_time(key[0], a, shape, len(calls), timesteps, loops)
                for a, shape in zip(axes, call.shapes, strict=True)
            )
        )
    whole = any(a is not None and a.all_steps for uses in found for a in uses)
    if timesteps == 1 or whole or len(calls) % timesteps:
        return Family(tuple(found), loops=False)
    return Family(tuple(found[: len(calls) // timesteps]), loops=True)


def _axes(
    name: str,
    two: Sequence[Shape],
    three: Sequence[Shape],
    longer: Sequence[Shape] | None,
    timesteps: int,
) -> tuple[Axes | None, ...]:
    stretched: Sequence[Shape | None] = longer or [None] * len(two)
    found = tuple(
        learn(name, a, b, c, timesteps) for a, b, c in zip(two, three, stretched, strict=True)
    )
    if all(axes is None for axes in found):
        raise TserError(f"{name} is fed with nothing that belongs to an image")
    return found


def _votes(
    by_key: dict[Key, list[TrialCall]], wider: dict[Key, list[TrialCall]], timesteps: int
) -> bool | None:
    """Return whether layers run a call a step, by those that can be read in one way; None if
    unclear.
    """
    votes = set()
    for key, calls in by_key.items():
        for a, shape in zip(
            _axes(key[0], calls[0].shapes, wider[key][0].shapes, None, timesteps),
            calls[0].shapes,
            strict=True,
        ):
            looped, whole = readings(a, shape, len(calls), timesteps) if a else (False, False)
            if looped != whole:
                votes.add(looped)
    return votes.pop() if len(votes) == 1 else None


def _with_order(
    families: dict[Key, Family], calls: list[TrialCall], timesteps: int
) -> dict[Key, Family]:
    """Settle how the calls of layers that are used several times a step follow each other."""
    order = [call.key for call in calls if families[call.key].loops]
    block = order[: len(order) // timesteps]
    if order == block * timesteps:
        return families
    for key, family in families.items():
        if not family.loops or len(family.uses) == 1:
            continue
        at = [i for i, other in enumerate(order) if other == key]
        if any(at[i + timesteps - 1] - at[i] >= timesteps for i in range(0, len(at), timesteps)):
            raise TserError(
                f"layer {key[0]} is used {len(family.uses)} times a step, in an order in which its "
                "steps can't be told; give every use a module of its own"
            )
        uses = tuple(family.uses[0] for _ in family.uses)
        families = {**families, key: Family(uses, loops=True, period=False)}
    return families


def _own_steps(two: TrialRun, three: TrialRun, timesteps: int) -> int:
    """T of a network that makes its own steps, as its neurons show it.

    Raises TserError where they show another one than asked for, or nothing.
    """
    wider = _grouped(three)
    found = set()
    for key, calls in _grouped(two).items():
        if key[1] == NEURON:
            found |= {_shown(key[0], calls, wider.get(key, []), timesteps)}
    if not found:
        return timesteps or 1
    if len(found) > 1 or (timesteps and found != {timesteps}):
        asked = f", not {timesteps}" if timesteps else ""
        shown = ", ".join(str(steps) for steps in sorted(found))
        raise TserError(f"the network runs its neurons for {shown} time steps by itself{asked}")
    return found.pop()


def _shown(name: str, calls: list[TrialCall], wider: list[TrialCall], timesteps: int) -> int:
    axes = _axes(name, calls[0].shapes, wider[0].shapes, None, timesteps or 1)[0]
    shape = calls[0].shapes[0]
    inside = shape[0] if axes is not None and axes.batch == 1 else axes.inner if axes else 1
    shown = len(calls) * inside
    # Neurons that several places of a step share.
    return timesteps if timesteps > 1 and shown % timesteps == 0 else shown


def trial_images(timesteps: int) -> int:
    """Return the images of a trial run on T + 1 steps: 2, but 3 where T is 2.

    A network that folds time and knows T can't then divide its T + 1 steps by T, and says so.
    """
    return 3 if timesteps == 2 else 2


def changed(first: Shape, second: Shape, name: str) -> list[int]:
    """Return the axes at which two shapes differ.

    Raises TserError where they have not the same axes.
    """
    if len(first) != len(second):
        raise TserError(
            f"{name} met an input of {first} and, with another number of images or steps, one of "
            f"{second}: what is time and what are images can't be told"
        )
    return [axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]


def learn(name: str, two: Shape, three: Shape, longer: Shape | None, timesteps: int) -> Axes | None:
    """Return the axes of a tensor from its shapes with 2 images, 3 images, and at T + 1 steps.

    None where nothing of it grows with the images: a weight. `longer` is of `trial_images(T)`, and
    None where T can't be changed, so that `guess_time` has to decide. Raises TserError where no
    axis holds the images alone.
    """
    grown, base = changed(two, three, name), three if trial_images(timesteps) == 3 else two
    if not grown and (longer is None or not changed(base, longer, name)):
        return None
    if len(grown) != 1 or 3 * two[grown[0]] != 2 * three[grown[0]]:
        raise TserError(
            f"{name} met inputs of {two} for 2 images and {three} for 3: no axis of it holds the "
            "images alone, so that its operations can't be told apart by image"
        )
    batch, width = grown[0], two[grown[0]] // 2
    if longer is None:
        return Axes(batch, inner=width)
    stretched = changed(base, longer, name)
    if not stretched:
        return Axes(batch, inner=width)
    if stretched == [batch] and longer[batch] * timesteps == base[batch] * (timesteps + 1):
        return Axes(batch, folded=True, inner=width // timesteps)
    if len(stretched) == 1 and two[stretched[0]] == timesteps:
        return Axes(batch, time=stretched[0], inner=width)
    raise TserError(
        f"{name} met inputs of {two} for {timesteps} time steps and {longer} for "
        f"{timesteps + 1}: no axis of it holds the steps"
    )


def readings(axes: Axes, shape: Shape, calls: int, timesteps: int) -> tuple[bool, bool]:
    """Return how a layer's calls can be read where T can't be changed: (one a step, all steps in
    one).
    """
    folded, leading = axes.inner % timesteps == 0, axes.batch == 1 and shape[0] == timesteps
    return calls % timesteps == 0, folded or leading


def guess_time(
    name: str, axes: Axes, shape: Shape, calls: int, timesteps: int, loops: bool | None
) -> Axes:
    """Return the time axis of a tensor of a network that makes its own steps, whose T can't be
    changed.

    A call for each step has none. One call may have T in front of the images, or folded into them.
    `loops`: how those layers of the network run that can be read in one way alone, None where they
    disagree or there are none. Raises TserError where two readings are left.
    """
    if timesteps == 1:
        return axes
    looped, whole = readings(axes, shape, calls, timesteps)
    tokens = len(shape) > axes.batch + 2 and shape[axes.batch + 1] == timesteps
    if loops is None and ((looped and whole) or (not looped and not whole and tokens)):
        raise TserError(
            f"{name} ran {calls} times on {shape}, where {timesteps} may be time steps or not; "
            "this network can't be counted as it makes its own steps: give it T from outside"
        )
    if not whole or (looped and loops):
        return axes
    if axes.inner % timesteps:
        return Axes(axes.batch, time=0, inner=axes.inner)
    return Axes(axes.batch, folded=True, inner=axes.inner // timesteps)
