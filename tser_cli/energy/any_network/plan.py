"""What a network does with its time steps and images: found by trial runs, before it is counted.

A network is run on 2 images, on 3, and where its input has a time axis for T + 1 steps: an axis
that grows with N holds the images, one that grows with T the steps, one that grows with both has
time folded into the batch. Sizes alone would mislead where T = N, heads = T or tokens = N.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, prod
from typing import Any

from torch import Tensor, nn

from tser_cli.base.errors import TserError
from tser_cli.energy.any_network import layouts
from tser_cli.energy.any_network.watch import TrialCall, TrialRun, survey, trace
from tser_cli.energy.counter import NEURON, Key, Position, Shape, first_tensor
from tser_cli.energy.counts import Axes

Calls = dict[Key, list[TrialCall]]


class OwnStepsError(TserError):
    """The network makes time steps by itself, others than it is said to."""


@dataclass(frozen=True)
class Family:
    """How the calls of one layer go on: `uses` of it at a step, each with its axes by operand.

    `loops`: whether each call computes one step, and `period` how they follow each other: True
    where the uses of a step come together, False where the steps of a use do.
    """

    uses: tuple[tuple[Axes | None, ...], ...]
    loops: bool
    period: bool = True

    def calls(self, timesteps: int) -> int:
        """Return how many calls of the layer a batch has."""
        return len(self.uses) * (timesteps if self.loops else 1)


@dataclass(frozen=True)
class TrialPlan:
    """How to count a network: `families` by layer and type, `order` that in which layers run.

    `survey`: the first trial run, with the neurons that it found. `spiking`: whether there are
    some. `chance`: whether random numbers are drawn. `also_fits`: other layouts, of equal counts.
    """

    layout: str
    timesteps: int
    families: dict[Key, Family]
    survey: TrialRun
    order: tuple[Key, ...]
    spiking: bool = False
    chance: bool = False
    also_fits: tuple[str, ...] = ()
    kinds: None = None  # they are found from the data

    @property
    def neurons(self) -> dict[str, str]:
        """Return the class of each layer of neurons, by name."""
        return self.survey.neurons

    @property
    def calls(self) -> int:
        return self.timesteps if self.layout == layouts.STEPWISE else 1

    @cached_property
    def expected(self) -> Mapping[Key, int]:
        return {key: family.calls(self.timesteps) for key, family in self.families.items()}

    def begin(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return the images of a batch. Raises TserError where it has another number of steps."""
        if self.layout == layouts.TIME_FIRST:
            if len(x) != self.timesteps:
                raise TserError(
                    f"a batch of {len(x)} time steps follows one of {self.timesteps}; count each "
                    "number of time steps by itself"
                )
            return x.shape[1]
        if self.layout != layouts.FOLDED:
            return len(x)
        if len(x) % self.timesteps:
            raise TserError(f"{len(x)} rows are no whole number of {self.timesteps} time steps")
        return len(x) // self.timesteps

    def place(self, key: Key, ordinal: int, shapes: tuple[Shape, ...], images: int) -> Position:
        """Use, step and axes of a call. Raises TserError for one that no trial run had."""
        use, step, axes = self.learned(key, ordinal)
        for found, shape in zip(axes, shapes, strict=True):
            if found and not found.fits(shape, self.timesteps, images):
                raise TserError(
                    f"layer {key[0]} met an input of {shape}, which does not hold {images} images "
                    "as it did in the trial runs; count images of one size at a time"
                )
        return use, step, axes

    def learned(self, key: Key, ordinal: int) -> Position:
        """Use, step and axes of a call, whatever its size. Raises TserError for one too many."""
        family = self.families.get(key)
        if family is None or ordinal >= family.calls(self.timesteps):
            raise TserError(
                f"layer {key[0]} runs more often here than in the trial runs on a few images; "
                "a network that computes less or more by what it sees can't be counted"
            )
        if not family.loops:
            return ordinal, None, family.uses[ordinal]
        if family.period:
            step, use = divmod(ordinal, len(family.uses))
        else:
            use, step = divmod(ordinal, self.timesteps)
        return use, step, family.uses[use]

    def owners(self, ran: list[str]) -> Mapping[str, str]:
        """Return the layer that runs last before each layer of neurons."""
        owners: dict[str, str] = {}
        last = ran[0]
        # In the order of calls: modules may be defined in another one.
        counted = {one.partition("#")[0]: one for one in reversed(ran)}
        for name, kind in self.order:
            if kind == NEURON:
                owners.setdefault(name, last)
            else:  # a product of weights alone ran, but is not counted
                last = counted.get(name, last)
        return owners


def make_plan(network: nn.Module, presentation: layouts.Presentation, timesteps: int) -> TrialPlan:
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
    # Trial images, since shapes are the only sign of time that every network gives. 2 and 3: a size
    # that is one of them by chance can't grow from 2 to 3 by chance too. Few, as these runs come
    # before any result; and not 1, which broadcasts.
    run = trace(network, two, names)
    by_key, wider = _grouped(run), _grouped(trace(network, presentation.of(3), names))
    for (name, kind), calls in by_key.items() if presentation.layout == layouts.STEPWISE else ():
        # spikingjelly's neurons take their first axis for time then, whatever it is.
        whole = kind == NEURON and getattr(network.get_submodule(name), "step_mode", "s") == "m"
        if whole and calls[0].shapes[0][0] > 1:
            raise TserError(
                f"layer {name} takes several time steps at each call (step_mode m); it can't be "
                f"counted stepwise: use --layout {layouts.INSIDE} or {layouts.TIME_FIRST}"
            )
    told = None
    for name in layouts.TIME_ARGUMENTS if presentation.layout == layouts.INSIDE else ():
        if timesteps and presentation.kwargs.get(name) == timesteps:
            kwargs = {**presentation.kwargs, name: timesteps + 1}
            with suppress(TserError):
                told = _grouped(trace(network, replace(two, kwargs=kwargs), names))
    if presentation.layout == layouts.INSIDE:
        timesteps = _own_steps(run, wider, timesteps, told)
    longer = late = None
    if two.layout == layouts.TIME_FIRST:
        # Other layouts have no time axis to make longer, and some networks know their T.
        more = two.of(trial_images(len(two.x_TN)), more_steps=1)
        with suppress(TserError):
            late = trace(network, more, names)
            longer = _grouped(late)
    if two.layout != layouts.INSIDE:
        _check_loops(run, late, two.layout, timesteps)
    families = learn_families(by_key, wider, longer, presentation.layout, timesteps)
    if presentation.layout != layouts.STEPWISE:
        families = _with_order(families, [call.key for call in run.calls], timesteps)
    counted = [family.uses for key, family in families.items() if key[1] != NEURON]
    if not any(axes for uses in counted for use in uses for axes in use):
        raise TserError("the network computes no Conv, Linear or matmul; there is nothing to count")
    return TrialPlan(
        presentation.layout, timesteps, families, first, tuple(by_key), is_spiking(run)
    )


def learn_families(
    by_key: Calls, wider: Calls, longer: Calls | None, layout: str, timesteps: int
) -> dict[Key, Family]:
    """Return how every layer's calls go on, from trial runs on 2 and 3 images, and T + 1 steps."""
    for key in {*by_key, *wider}:
        if len(by_key.get(key, [])) != len(wider.get(key, [])):
            raise TserError(
                f"layer {key[0]} runs {len(by_key.get(key, []))} times for 2 images and "
                f"{len(wider.get(key, []))} times for 3; a network that goes over its images "
                "one by one, or computes by what it sees, can't be counted"
            )
    stepwise, families = layout == layouts.STEPWISE, {}
    loops = None if stepwise or longer is not None else _votes(by_key, wider, timesteps)
    for key, calls in by_key.items():
        if stepwise:
            here = [call for call in calls if call.step == 0]
            if len(here) * timesteps != len(calls) or not here:
                raise TserError(
                    f"layer {key[0]} does not run as often in every step; it can't be counted "
                    "stepwise"
                )
            uses = _uses(here, wider[key][: len(here)], None, timesteps)
            families[key] = Family(uses, loops=True)
        elif longer is None:
            families[key] = _guessed(calls, wider[key], timesteps, loops)
        elif len(late := longer.get(key, [])) == len(calls):
            # As many calls for one step more: each holds all steps.
            families[key] = Family(_uses(calls, wider[key], late, timesteps), loops=False)
        elif len(calls) % timesteps or len(late) * timesteps != len(calls) * (timesteps + 1):
            raise TserError(
                f"layer {key[0]} runs {len(calls)} times in {timesteps} time steps and "
                f"{len(late)} times in {timesteps + 1}; it is not clear which call is which step"
            )
        else:
            uses = _uses(calls, wider[key], None, timesteps)[: len(calls) // timesteps]
            families[key] = Family(uses, loops=True)
    return families


def _grouped(run: TrialRun) -> Calls:
    groups: Calls = {}
    for call in run.calls:
        groups.setdefault(call.key, []).append(call)
    return groups


def _guessed(
    calls: list[TrialCall], wider: list[TrialCall], timesteps: int, loops: bool | None
) -> Family:
    """Return how a layer's calls go on in a network whose T can't be changed."""
    found = tuple(
        tuple(
            a and guess_time(call.key[0], a, shape, len(calls), timesteps, loops)
            for a, shape in zip(axes, call.shapes, strict=True)
        )
        for call, axes in zip(calls, _uses(calls, wider, None, timesteps), strict=True)
    )
    whole = any(a is not None and a.all_steps for uses in found for a in uses)
    if timesteps == 1 or whole or len(calls) % timesteps:
        return Family(found, loops=False)
    return Family(found[: len(calls) // timesteps], loops=True)


def _uses(
    calls: list[TrialCall], wider: list[TrialCall], longer: list[TrialCall] | None, timesteps: int
) -> tuple[tuple[Axes | None, ...], ...]:
    """Return the axes of what each call is fed with, by operand."""
    uses = []
    for i, (call, more) in enumerate(zip(calls, wider, strict=True)):
        late: Sequence[Shape | None] = longer[i].shapes if longer else [None] * len(call.shapes)
        shapes = zip(call.shapes, more.shapes, late, strict=True)
        uses.append(tuple(learn(call.key[0], a, b, c, timesteps) for a, b, c in shapes))
    return tuple(uses)


def _votes(by_key: Calls, wider: Calls, timesteps: int) -> bool | None:
    """Return whether layers run a call a step, by those that can be read in one way.

    None where that is unclear.
    """
    votes = set()
    for key, calls in by_key.items():
        (axes,) = _uses(calls[:1], wider[key][:1], None, timesteps)
        for a, shape in zip(axes, calls[0].shapes, strict=True):
            looped, whole = readings(a, shape, len(calls), timesteps) if a else (False, False)
            if looped != whole:
                votes.add(looped)
    return votes.pop() if len(votes) == 1 else None


def _with_order(families: dict[Key, Family], ran: list[Key], timesteps: int) -> dict[Key, Family]:
    """Settle how the calls of layers that are used several times a step follow each other."""
    order = [key for key in ran if families[key].loops]
    block = order[: len(order) // timesteps]
    if order == block * timesteps:
        return families
    # Steps do not follow each other as whole blocks. Then the calls of a use have to: all its
    # steps, before the next use of the same layer.
    for key, family in families.items():
        if not family.loops or len(family.uses) == 1:
            continue
        at = [i for i, other in enumerate(order) if other == key]
        if any(at[i + timesteps - 1] - at[i] >= timesteps for i in range(0, len(at), timesteps)):
            raise TserError(
                f"layer {key[0]} is used {len(family.uses)} times a step, in an order from which "
                "its steps are not clear; give every use a module of its own"
            )
        uses = tuple(family.uses[0] for _ in family.uses)
        families = {**families, key: Family(uses, loops=True, period=False)}
    return families


def repeats(calls: Sequence[TrialCall]) -> int:
    """Return how often a network goes through the same calls of layers; 1 where it does not.

    What runs once, before or after them, is no part of it.
    """
    times = Counter(call.key for call in calls)
    again = [at for at, call in enumerate(calls) if times[call.key] > 1]
    order = [call.key for call in calls[again[0] : again[-1] + 1]] if again else []
    # A layer that two places of a step share has others between them.
    if all(key[1] == NEURON for key in order) or len(order) > len(again):
        return 1
    most = gcd(*(times[key] for key in order))
    fits = (n for n in range(most, 1, -1) if order == order[: len(order) // n] * n)
    return next(fits, 1)


def inner_repeats(calls: Sequence[TrialCall]) -> int:
    """Return how often a part of a step is gone through: the most, of layers that run as often."""
    times, most = Counter(call.key for call in calls), 1
    for often in set(times.values()):
        at = [i for i, call in enumerate(calls) if times[call.key] == often]
        part = calls[at[0] : at[-1] + 1]
        if len(part) == len(at):
            most = max(most, repeats(part))
    return most


def is_spiking(run: TrialRun) -> bool:
    """Return whether there are layers of neurons, or layers after the first are fed with spikes."""
    layers = [call for call in run.calls if call.key[1] != NEURON]
    return len(layers) < len(run.calls) or any(
        call.spikes and call.key[0] != layers[0].key[0] for call in layers
    )


def _own_steps(two: TrialRun, wider: Calls, timesteps: int, told: Calls | None) -> int:
    """Return T of a network that makes its own steps, as its neurons and its loops show it.

    `told`: a run that was told T + 1, where the network takes T. Raises TserError where they show
    another T than asked for, or several.
    """
    loops, by_key = repeats(two.calls), _grouped(two)
    shown: dict[str, set[int]] = {}
    most: list[int] = []
    leads = False
    for (name, kind), calls in by_key.items():
        if kind != NEURON:
            continue
        rows, leading = _rows(calls, wider.get((name, kind), []))
        # Several places of a step may share neurons, and rows beside the steps may be tokens.
        most.append(len(calls) * rows)
        shown[name] = {rows, most[-1]} if leading else {rows, len(calls), most[-1], loops}
        leads = leads or leading
    if not shown and (1 < loops == timesteps or not is_spiking(two)):
        return timesteps or 1
    if not shown and loops == 1:
        # Spikes that no module makes: rows of their readers are steps, or tokens.
        fed = [key for key, calls in by_key.items() if any(call.spikes for call in calls)]
        most = [_rows(by_key[key], wider[key])[0] for key in fed]
        if all(rows in (1, timesteps) for rows in most):
            return timesteps or 1
    if not timesteps and loops > 1 and not leads:
        return loops
    distinct = {frozenset(options - {1}) for options in shown.values()}
    if not timesteps and len(distinct) == 1 and len(next(iter(distinct))) < 2:
        return max(most)
    # 1 may be among them by chance: a call of one row may be one step of several.
    believable = timesteps > 1 or set(most) == {1}
    if shown and believable and all(timesteps in options for options in shown.values()):
        return timesteps
    if told is not None and _grow(by_key, told, timesteps):
        return timesteps
    if loops > 1 and not leads:
        most = [loops]
    elif leads:
        most = [min(options - {1}, default=1) for options in shown.values()]
    steps = ", ".join(str(n) for n in sorted(set(most)))
    what = "runs its neurons" if shown else "goes through its layers"
    asked = (
        f", not {timesteps}: say the T that it makes" if timesteps else "; say how many, with -T"
    )
    problem = TserError if set(most) == {1} else OwnStepsError
    raise problem(
        f"the network {what} for {steps} time step{'s' * (steps != '1')} by itself{asked}"
    )


def _rows(calls: list[TrialCall], wider: list[TrialCall]) -> tuple[int, bool]:
    """Return the rows that a call of neurons has for an image, and whether they lead the images."""
    ((axes,),), shape = _uses(calls[:1], wider[:1], None, 1), calls[0].shapes[0]
    assert axes is not None, "neurons hold something of each image"
    if axes.batch == 1 and shape[0] > 1:
        return shape[0], True
    return axes.inner, False


def _grow(few: Calls, more: Calls, timesteps: int) -> bool:
    """Return whether neurons, or readers of spikes, make T + 1 steps where they are told T + 1."""
    no_neurons = all(key[1] != NEURON for key in few)
    sizes = [
        [sum(prod(call.shapes[0]) for call in calls) for calls in (few[key], more.get(key, []))]
        for key in few
        if key[1] == NEURON or (no_neurons and any(call.spikes for call in few[key]))
    ]
    return bool(sizes) and all(a * (timesteps + 1) == b * timesteps for a, b in sizes)


def _check_loops(run: TrialRun, longer: TrialRun | None, layout: str, timesteps: int) -> None:
    """Raise TserError where a network that is given its steps makes more of its own."""
    calls = [call for call in run.calls if layout != layouts.STEPWISE or call.step == 0]
    loops, times = repeats(calls), Counter(call.key for call in calls)
    neurons = [key for key in times if key[1] == NEURON]
    outside = [key for key in neurons if times[key] % loops or times[key] == 1]
    if layout == layouts.STEPWISE and loops == 1:
        loops, outside = inner_repeats(calls), []
    if loops == 1 or outside or (not neurons and not is_spiking(run)):
        return
    if (
        layout != layouts.STEPWISE
        and loops == timesteps
        and (longer is None or repeats(longer.calls) == timesteps + 1)
    ):
        return
    raise OwnStepsError(
        f"the network goes through its layers {loops} times at each call, as if it made {loops} "
        f"time steps by itself; count it with --layout {layouts.INSIDE} (layout), T = {loops}"
    )


def trial_images(timesteps: int) -> int:
    """Return the images of a trial run on T + 1 steps: 2, but 3 where T is 2.

    A network that folds time and knows T can't then divide its T + 1 steps by T, and says so.
    """
    return 3 if timesteps == 2 else 2


def changed(first: Shape, second: Shape, name: str) -> list[int]:
    """Return the axes at which two shapes differ. Raises TserError where one has more of them."""
    if len(first) != len(second):
        raise TserError(
            f"{name} met an input of {first} and, with another number of images or steps, one of "
            f"{second}: it is not clear which axis is time and which images"
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
    # In proportion: an axis of N + 1 tokens grows too, and holds no images.
    if len(grown) != 1 or 3 * two[grown[0]] != 2 * three[grown[0]]:
        raise TserError(
            f"{name} met inputs of {two} for 2 images and {three} for 3: no axis of it holds the "
            "images alone, so that its operations can't be counted by image"
        )
    batch, width = grown[0], two[grown[0]] // 2
    if longer is None:
        return Axes(batch, inner=width)
    stretched = changed(base, longer, name)
    if not stretched:
        return Axes(batch, inner=width)
    # Time folded into the batch: the same axis grows with T, and as much.
    if stretched == [batch] and longer[batch] * timesteps == base[batch] * (timesteps + 1):
        return Axes(batch, folded=True, inner=width // timesteps)
    if len(stretched) == 1 and two[stretched[0]] == timesteps:
        return Axes(batch, time=stretched[0], inner=width)
    raise TserError(
        f"{name} met inputs of {two} for {timesteps} time steps and {longer} for "
        f"{timesteps + 1}: no axis of it holds the steps"
    )


def readings(axes: Axes, shape: Shape, calls: int, timesteps: int) -> tuple[bool, bool]:
    """Return whether a layer's calls can be one a step, and whether one can hold all steps."""
    folded, leading = axes.inner % timesteps == 0, axes.batch == 1 and shape[0] == timesteps
    return calls % timesteps == 0, folded or leading


def guess_time(
    name: str, axes: Axes, shape: Shape, calls: int, timesteps: int, loops: bool | None
) -> Axes:
    """Return the time axis of a tensor of a network whose T can't be changed.

    A call for each step has none. One call may have T in front of the images, or folded into them.
    `loops`: how those layers of the network run that can be read in one way alone, None where they
    disagree or there are none. Raises TserError where two readings are left.
    """
    if timesteps == 1:
        return axes
    looped, whole = readings(axes, shape, calls, timesteps)
    # An axis of T behind the images may be tokens, features, or the steps.
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
