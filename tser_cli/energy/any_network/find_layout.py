"""Which layout a network has: each is tried, and what is found has to show itself in the data.

In one image, one step is changed. Nothing of another image may change with it, nothing of an
earlier step, and something of a later step has to: otherwise what was taken for time is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError
from tser_cli.energy.any_network.layouts import (
    AUTO,
    FOLDED,
    INSIDE,
    STEPWISE,
    TIME_FIRST,
    Presentation,
    fresh_copy,
    try_out,
)
from tser_cli.energy.any_network.plan import TrialPlan, make_plan
from tser_cli.energy.any_network.products import ProductCall
from tser_cli.energy.any_network.watch import intercepted
from tser_cli.energy.counter import NEURON, LayerCall, Met, first_tensor
from tser_cli.energy.counts import Axes

Signature = dict[tuple[str, str, int], Tensor]
# Other values, none, and negative ones: a neuron that one of them leaves as it was, as one that
# fires at every step does, is moved by another.
DISTURBANCES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.flip(0) * 3 + 2,
    lambda x: torch.zeros_like(x),
    lambda x: -x - 1,
)
TOLERANCE = 1e-5  # float32 sums differ by rounding where other images are in the batch
NO_TIME = (
    "nothing that comes after the first time step changes with it: the network takes no notice of "
    "time when it is called so, or no spike arrives"
)

KEEPS_STATE = (
    "the network keeps its state from one call to the next, so that a call may be one time step of "
    "several; say how many time steps an image has, with timesteps or -T: 1 if a call is an image"
)


def find_plan(
    network: nn.Module,
    layout: str,
    timesteps: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> TrialPlan:
    """Return the plan of a network from its first call.

    Raises TserError where none can be found.
    """
    keyword, x = (None, args[0]) if args else next(iter(kwargs.items()))
    if not isinstance(x, Tensor):
        raise TserError("the first argument of the network has to be its input, a tensor")
    rest = {name: value for name, value in kwargs.items() if name != keyword}
    candidates = [
        Presentation(name, x_TN, args[1:], rest, keyword)
        for name, x_TN in _readings(x.detach(), timesteps)
        if layout in (AUTO, name)
    ]
    if not candidates:
        raise TserError(
            f"an input of {tuple(x.shape)} can't be {layout}"
            + (f" with {timesteps} time steps" if timesteps else "; say timesteps=T")
        )
    return choose(network, candidates, timesteps, certain=layout != AUTO)


def _readings(x: Tensor, timesteps: int) -> Iterator[tuple[str, Tensor]]:
    """Yield what an input can be read as: layouts, each with time in front."""
    if x.dim() > 1 and timesteps in (0, len(x)):
        yield TIME_FIRST, x
    if timesteps and len(x) % timesteps == 0:
        yield FOLDED, x.reshape(timesteps, -1, *x.shape[1:])
    if timesteps:
        yield STEPWISE, x.expand(timesteps, *x.shape)
    yield INSIDE, x


def choose(
    network: nn.Module, candidates: list[Presentation], timesteps: int, certain: bool
) -> TrialPlan:
    """Return the plan of the one candidate that fits.

    Raises TserError with why not, where none does.

    `certain`: the layout was said; it is believed without a sign of time, but not against the data.
    """
    fitting: list[TrialPlan] = []
    reasons: list[str] = []
    for candidate in candidates:
        try:
            fitting.append(check(network, candidate, timesteps, certain))
        except TserError as error:
            if certain:
                raise
            reasons.append(f"  {candidate.layout}: {error}")
    # A network without time steps can be called anyhow; one that has some shows them.
    timed = [plan for plan in fitting if plan.timesteps > 1]
    fitting = timed or fitting
    if len(fitting) == 1 or (fitting and not timed):
        return fitting[0]
    if fitting:
        names = " and ".join(plan.layout for plan in fitting)
        raise TserError(f"the network can be {names}; say which layout it is")
    tried = "\n".join(reasons)
    raise TserError(f"how the network takes its time steps can't be found; say the layout\n{tried}")


def check(
    network: nn.Module, presentation: Presentation, timesteps: int, certain: bool = False
) -> TrialPlan:
    """Return the plan for one presentation, once the data have confirmed it. Raises TserError."""
    steps = timesteps if presentation.layout == INSIDE else len(presentation.x_TN)
    plan = make_plan(network, presentation, steps)
    if not steps and plan.timesteps == 1:
        # A second call that differs, with no reset in between, is a step and no image.
        made = fresh_copy(network)
        first, second = (observe(made, plan, presentation.of(2))[0] for _ in range(2))
        if any(bool(changes(first[key], second[key]).any()) for key in first):
            raise TserError(KEEPS_STATE)
    if not confirm(network, plan, presentation.of(2)) and not certain:
        raise TserError(NO_TIME)
    return plan


def confirm(network: nn.Module, plan: TrialPlan, two: Presentation) -> bool:
    """Return whether time shows in the data of 2 images.

    Raises TserError where they contradict it.
    """

    def fed(shown: Presentation) -> Signature:
        return observe(fresh_copy(network), plan, shown)[0]

    before = fed(two)
    seen = plan.timesteps == 1
    for change in DISTURBANCES:
        after = fed(disturbed(two, 0, change))
        for key in before:
            if changes(before[key], after[key])[:, 1].any():
                raise TserError(
                    f"layer {key[0]}: what it is fed with for one image changes with another "
                    "image, so that time is not outermost, or images are mixed; tser audit says "
                    "more"
                )
        seen = seen or any(bool(changes(before[k], after[k])[1:, 0].any()) for k in before)
    if plan.layout == INSIDE:
        return seen or any(len(rows_SN) > 1 for rows_SN in before.values())
    last = plan.timesteps - 1
    after = fed(disturbed(two, last, DISTURBANCES[0]))
    for key in before:
        rows_SN = changes(before[key], after[key])
        if len(rows_SN) > 1 and rows_SN[:last].any():
            raise TserError(
                f"layer {key[0]}: what it is fed with at a time step changes with a later one, so "
                "that time is not outermost, or the network looks ahead; tser audit says more"
            )
    return seen


def changes(before_SN: Tensor, after_SN: Tensor) -> Tensor:
    """Return where two signatures differ, beyond rounding: [S, N]."""
    scale = before_SN.abs() + after_SN.abs()
    return (before_SN - after_SN).abs() > TOLERANCE * scale.clamp(min=1e-3)


def disturbed(two: Presentation, step: int, change: Callable[[Tensor], Tensor]) -> Presentation:
    """Return the same with other values in the first image, at one step; "inside" has them at
    all.
    """
    x = two.x_TN.clone()
    part = x[0] if two.layout == INSIDE else x[step, 0]
    part.copy_(change(part.flatten()).view_as(part).to(part.dtype))
    return replace(two, x_TN=x)


def observe(
    network: nn.Module, plan: TrialPlan, presentation: Presentation
) -> tuple[Signature, list[Any]]:
    """Run a network; the sum of what every call is fed with, [T, N] or [1, N], and its outputs."""
    parts: dict[tuple[str, str, int], list[Tensor]] = {}
    ordinals: Counter[tuple[str, str]] = Counter()
    images = presentation.x_TN.shape[presentation.images_axis]

    def note(name: str, kind: str, tensors: tuple[Tensor | None, ...]) -> None:
        key = (name, kind)
        use, _, axes = plan.learned(key, ordinals[key])
        ordinals[key] += 1
        sums = [
            _row_sums(x, found, plan.timesteps, images)
            for x, found in zip(tensors, axes, strict=True)
            if x is not None and found is not None
        ]
        if sums:
            parts.setdefault((*key, use), []).append(sums[0])

    def sink(met: Met) -> None:
        if isinstance(met, LayerCall):
            note(met.name, met.type, (met.x,))
        elif isinstance(met, ProductCall):
            note(met.name, met.type, tuple(factor.tensor for factor in met.product.factors))

    def leaving(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if name in plan.neurons and first_tensor(output) is not None:
            note(name, NEURON, (first_tensor(output),))

    with intercepted(network, sink, leaving):
        outputs = try_out(network, presentation)
    return {key: torch.cat(sums) for key, sums in parts.items()}, outputs


def _row_sums(x: Tensor, axes: Axes, timesteps: int, images: int) -> Tensor:
    rows = axes.rows(x.detach())
    weighted = rows.reshape(axes.steps(timesteps), images, -1).double()
    # Weighted, so that two values that change places are seen.
    weights = torch.linspace(1, 2, weighted.shape[-1], dtype=torch.float64, device=x.device)
    return (weighted * weights).sum(-1)
