"""Which axis of a tensor is time and which is the batch, learned by changing T and N.

A network is run on 2 images, on 3, and where its input has a time axis for T + 1 steps: an axis
that grows with N holds the images, one that grows with T the steps, one that grows with both has
time folded into the batch. So T = N, heads = T or tokens = N mislead nobody.

What a network does with its time steps and images: found by trial runs, before it is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from tser_cli.base.errors import TserError
from tser_cli.energy.any_network.layouts import (
    INSIDE,
    STEPWISE,
    TIME_FIRST,
    Axes,
    Presentation,
    Shape,
    guess_time,
    learn,
    readings,
    trial_images,
)
from tser_cli.energy.any_network.watch import NEURON, Call, Trace, first_tensor, survey, trace

Key = tuple[str, str]


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
class Plan:
    """How to count a network: `families` by layer and type; `survey` is the first trial run,
    `order` that in which layers run."""

    layout: str
    timesteps: int
    families: dict[Key, Family]
    survey: Trace = field(default_factory=Trace)
    order: tuple[Key, ...] = ()

    @property
    def neurons(self) -> dict[str, str]:
        """Return the class of each layer of neurons, by name."""
        return self.survey.neurons

    def place(self, key: Key, ordinal: int) -> tuple[int, int | None, tuple[Axes | None, ...]]:
        """Use, step and axes of a call. Raises TserError for one that no trial run had."""
        family = self.families.get(key)
        if family is None or ordinal >= family.calls(self.timesteps):
            raise TserError(
                f"layer {key[0]} runs more often here than in the trial runs on a few images; "
                "a network that computes less or more by what it sees can't be counted"
            )
        use, step = family.place(ordinal, self.timesteps)
        return use, step, family.uses[use]


def make_plan(network: nn.Module, presentation: Presentation, timesteps: int) -> Plan:
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
    runs = [trace(network, two, names), trace(network, presentation.of(3), names)]
    if presentation.layout == INSIDE:
        timesteps = _own_steps(runs[0], runs[1], timesteps)
    longer = _one_step_more(network, two, names)
    families = learn_families(runs[0], runs[1], longer, presentation.layout, timesteps)
    if not any(key[1] != NEURON for key in families):
        raise TserError("the network computes no Conv, Linear or matmul; there is nothing to count")
    order = tuple(dict.fromkeys(call.key for call in runs[0].calls))
    return Plan(presentation.layout, timesteps, families, first, order)


def _one_step_more(network: nn.Module, two: Presentation, names: set[str]) -> Trace | None:
    """Return a trial run on T + 1 steps, None where the layout or the network does not allow it."""
    if two.layout != TIME_FIRST:
        return None
    try:
        return trace(network, two.of(trial_images(len(two.x_TN)), more_steps=1), names)
    except TserError:
        return None


def learn_families(
    two: Trace, three: Trace, longer: Trace | None, layout: str, timesteps: int
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


def _grouped(run: Trace) -> dict[Key, list[Call]]:
    groups: dict[Key, list[Call]] = {}
    for call in run.calls:
        groups.setdefault(call.key, []).append(call)
    return groups


def _stepwise(key: Key, calls: list[Call], wider: list[Call], timesteps: int) -> Family:
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
    calls: list[Call],
    wider: list[Call],
    longer: list[Call] | None,
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
    key: Key, calls: list[Call], wider: list[Call], timesteps: int, loops: bool | None
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
    by_key: dict[Key, list[Call]], wider: dict[Key, list[Call]], timesteps: int
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
    families: dict[Key, Family], calls: list[Call], timesteps: int
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


def _own_steps(two: Trace, three: Trace, timesteps: int) -> int:
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


def _shown(name: str, calls: list[Call], wider: list[Call], timesteps: int) -> int:
    axes = _axes(name, calls[0].shapes, wider[0].shapes, None, timesteps or 1)[0]
    shape = calls[0].shapes[0]
    inside = shape[0] if axes is not None and axes.batch == 1 else axes.inner if axes else 1
    shown = len(calls) * inside
    # Neurons that several places of a step share.
    return timesteps if timesteps > 1 and shown % timesteps == 0 else shown
