"""Counting the operations of any network, whatever gives it its time steps.

    with count_operations(network, layout="time-first") as counter:
        network(x_TNCHW)
    counts = counter.counts()

The first call is tried out on a copy of the network with a few images, to find out where steps and
images are (see `plan.py`). What feeds a layer is found from the data, call by call.

Below: which layout a network has. Each is tried, and what is found has to show itself in the data.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError, unknown
from tser_cli.energy import tally
from tser_cli.energy.any_network import layouts
from tser_cli.energy.any_network.layouts import AUTO, INSIDE, LAYOUTS, Presentation, fresh_copy
from tser_cli.energy.any_network.plan import OwnStepsError, TrialPlan, make_plan
from tser_cli.energy.any_network.products import ProductCall
from tser_cli.energy.any_network.watch import intercepted
from tser_cli.energy.counter import NEURON, Counter, LayerCall, Met, first_tensor, neuron_owners
from tser_cli.energy.counts import REAL, SPIKES, Counts, LayerCounts
from tser_cli.energy.neurons import different, reset_states

Leaving = Callable[[nn.Module, tuple[Any, ...], Any], None]
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

SAY_T = (
    "the network has spiking neurons, and makes no time steps of its own: say how many an image "
    "has, with timesteps or -T: 1 if it is shown once"
)
KEEPS_STATE = (
    "the network keeps its state from one call to the next, so that a call may be one time step of "
    "several; say how many time steps an image has, with timesteps or -T: 1 if a call is an image"
)


class TrialCounter(Counter):
    """The counter with a plan by trial: `plan` is what was found, None before the first call."""

    plan: TrialPlan | None

    def kinds(self) -> dict[str, str]:
        """Return what feeds each layer, as it was found; "zeros alone" where nothing else came."""
        return {
            name: self.kind(name) if any(met) else "zeros alone"
            for name, met in self.kinds_met.items()
        }

    def met(self) -> dict[str, dict[str, int]]:
        """Return in how many calls each layer was fed with what; those of zeros are left out."""
        met = {name: {k: n for k, n in of.items() if k} for name, of in self.kinds_met.items()}
        return {
            name: of if self.scale(name) == 1 else {self.kind(name): sum(of.values())}
            for name, of in met.items()
        }

    def differing(self) -> dict[str, dict[str, int]]:
        """Return the layers that were fed with one kind in some calls and another in others."""
        return {name: kinds for name, kinds in self.met().items() if len(kinds) > 1}

    def folded(self) -> dict[str, float]:
        """Return the layers whose spikes are 0 and c, with the c that folds into the weights."""
        return {name: c for name in self.scales if (c := self.scale(name)) != 1}


@contextmanager
def count_operations(
    network: nn.Module,
    layout: str = AUTO,
    timesteps: int = 0,
    detailed: bool = False,
    also: Leaving | None = None,
) -> Iterator[TrialCounter]:
    """Count what `network` does inside the `with`, exactly; everything is taken off again.

    `layout`: how the network is called with T steps (time-first, folded, stepwise or inside), or
    auto, to find it from the first call. `timesteps`: T, which only time-first shows by itself and
    inside may be found. `detailed`: also gather what the conventions of others and an audit need.
    `also`: shown every module that has run, with its arguments and output. A compiled network runs
    uncompiled meanwhile. Raises TserError where the network can't be counted, or its layout can't
    be told.
    """
    if layout not in (*LAYOUTS, AUTO):
        raise TserError(unknown("layout", layout, (*LAYOUTS, AUTO)))
    plain = layouts.unwrapped(network)
    counter = TrialCounter(None, detailed)

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not plain:  # a copy on trial, which carries the hook along
            return
        if counter.plan is None:
            counter.plan = find_plan(plain, layout, timesteps, args, kwargs)
        # Each batch anew: what the one before left in the neurons would make counts depend on how
        # images are split. By the library's own method, as only that knows what a neuron keeps.
        if counter.begin(args, kwargs):
            reset_states(plain)

    def operation(met: Met) -> None:
        if counter.images:
            counter.operation(met)

    def left(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if counter.plan is None or not counter.images:
            return
        if also is not None:
            with torch.no_grad():
                also(module, args, output)
        spikes = first_tensor(output)
        if spikes is not None and name in counter.plan.neurons:
            counter.neurons(name, module, spikes)

    # The hook first: a batch has to have begun before its first operation is met.
    hook = plain.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        # The trial runs looked everywhere: a product that is not met again is missed in the end.
        with intercepted(plain, operation, left, everywhere=False):
            yield counter
    finally:
        hook.remove()


def as_declared(counts: Counts, model: nn.Module, kinds: Mapping[str, str]) -> Counts:
    """Return counts that were made by trial as those by what the network declares.

    Products, which no declaration speaks of, and details are left out. Raises TserError where a
    layer met data of another kind than it was declared to meet.
    """
    updates: collections.Counter[str] = collections.Counter()
    owners = neuron_owners(model)
    for neurons in counts.neurons:
        updates[owners.get(neurons.name, "")] += neurons.updates
    layers = []
    for found in counts.layers:
        name = found.layer.name
        if name not in kinds:
            continue
        kind, met = kinds[name], found.layer.input_kind
        if kind != REAL and met not in (kind, SPIKES):
            raise TserError(tally.fault_message(name, kind, tally.NOT_OF_KIND))
        # A layer that is declared real costs MACs, though these images may have been 0 and 1.
        spent = 0 if kind == REAL else 1
        layers.append(
            LayerCounts(
                layer=replace(found.layer, input_kind=kind),
                neuron_updates=updates[name],
                executed_T=found.executed_T,
                nonzero_TI=found.nonzero_TI,
                events_TI=found.events_TI * spent,
                value_TI=found.value_TI * spent,
            )
        )
    return replace(counts, layers=tuple(layers))


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
    rest, fed = {name: value for name, value in kwargs.items() if name != keyword}, x.detach()
    # What the input can be read as, each with time in front.
    readings = {INSIDE: fed}
    if timesteps:
        readings[layouts.STEPWISE] = fed.expand(timesteps, *fed.shape)
    if timesteps and len(fed) % timesteps == 0:
        readings[layouts.FOLDED] = fed.reshape(timesteps, -1, *fed.shape[1:])
    if fed.dim() > 1 and timesteps in (0, len(fed)):
        readings[layouts.TIME_FIRST] = fed
    candidates = [
        Presentation(name, readings[name], args[1:], rest, keyword)
        for name in LAYOUTS
        if name in readings and layout in (AUTO, name)
    ]
    if not candidates:
        raise TserError(
            f"an input of {tuple(x.shape)} can't be {layout}"
            + (f" with {timesteps} time steps" if timesteps else "; say timesteps=T")
        )
    return choose(network, candidates, timesteps, certain=layout != AUTO)


class SeveralFitError(TserError):
    """Several layouts fit: their `plans`."""

    def __init__(self, plans: list[TrialPlan]) -> None:
        names = " and ".join(plan.layout for plan in plans)
        super().__init__(f"the network can be {names}; say which layout it is")
        self.plans = plans


def choose(
    network: nn.Module,
    candidates: list[Presentation],
    timesteps: int,
    certain: bool,
    faulty: bool = False,
) -> TrialPlan:
    """Return the plan of the one candidate that fits.

    `certain`: the layout was said; it is believed without a sign of time, but not against the data.
    `faulty`: also one whose states nothing resets. Raises SeveralFitError where several fit, and
    TserError with why not where none does.
    """
    fitting: list[TrialPlan] = []
    errors: list[tuple[str, TserError]] = []
    # All are tried, not the first that runs: an input can often be read in several ways.
    for candidate in candidates:
        try:
            fitting.append(check(network, candidate, timesteps, certain, faulty))
        except TserError as error:
            if certain:
                raise
            errors.append((candidate.layout, error))
    # A network without time steps can be called anyhow; one that has some shows them.
    timed = [plan for plan in fitting if plan.timesteps > 1]
    fitting = timed or fitting
    if len(fitting) == 1 or (fitting and not timed):
        return fitting[0]
    if fitting:
        raise SeveralFitError(fitting)
    misfits = [error for _, error in errors if isinstance(error, layouts.MisfitError)]
    if misfits and all(isinstance(error, layouts.UnrunnableError) for _, error in errors):
        raise misfits[-1]  # the last ones show the images as they are
    clear: list[TserError] = [error for _, error in errors if isinstance(error, ClearError)]
    dull = (layouts.UnrunnableError, OwnStepsError)
    all_dull = all(isinstance(error, dull) or str(error) == NO_TIME for _, error in errors)
    own = [
        error
        for name, error in errors
        if isinstance(error, OwnStepsError) and (all_dull or name == INSIDE)
    ]
    clear += own[-1:]  # the last is tried as a network that makes its own steps
    same = len({str(error) for _, error in errors}) == 1 and not isinstance(errors[0][1], dull)
    if clear or (same and str(errors[0][1]) != NO_TIME):
        raise clear[0] if clear else errors[0][1]
    tried = "\n".join(f"  {name}: {error}" for name, error in errors)
    raise TserError(f"how the network takes its time steps can't be found; say the layout\n{tried}")


class ClearError(TserError):
    """What is wrong in any layout: a state that nothing resets, NaN, or a T that was not said."""


def check(
    network: nn.Module,
    presentation: Presentation,
    timesteps: int,
    certain: bool = False,
    faulty: bool = False,
) -> TrialPlan:
    """Return the plan for one presentation, once the data have confirmed it; see `choose`."""
    steps = timesteps if presentation.layout == INSIDE else len(presentation.x_TN)
    plan = make_plan(network, presentation, steps)
    made, two, chance = fresh_copy(network), presentation.of(2), layouts.Chance()
    first, outputs = observe(made, plan, two, chance)
    if not steps and plan.timesteps == 1:
        if plan.spiking:
            raise ClearError(SAY_T)
        # A second call that differs, with no reset in between, is a step and no image.
        if _differ(first, observe(made, plan, two)[0]):
            raise TserError(KEEPS_STATE)
    if not faulty:
        for (name, _, _), rows_SN in first.items():
            if not rows_SN.isfinite().all():
                raise ClearError(f"layer {name} is fed with NaN or infinite values; look before it")
        _check_reset(network, made, plan, two, (first, outputs))
    if not confirm(network, plan, two, first) and not certain:
        raise TserError(NO_TIME)
    return replace(plan, chance=chance.drew)


def _differ(first: Signature, second: Signature) -> bool:
    return any(bool(changes(first[key], second[key]).any()) for key in first)


def _check_reset(
    network: nn.Module,
    used: nn.Module,
    plan: TrialPlan,
    two: Presentation,
    before: tuple[Signature, list[Any]],
) -> None:
    """Raise ClearError where a copy that was used, and reset, does not give the same again."""
    reset_states(used)
    kept = _kept(used, fresh_copy(network))
    again, outputs = observe(used, plan, two)
    pairs = zip(map(first_tensor, before[1]), map(first_tensor, outputs), strict=True)
    if not _differ(before[0], again) and all(
        a is None or b is None or torch.allclose(a, b, 1e-3, 1e-5, equal_nan=True) for a, b in pairs
    ):
        return
    raise ClearError(
        f"the network gives something else when it is run again, though its states were reset: "
        f"{kept or 'it'} keeps something from the batch before, or draws from a random generator "
        "of its own; forget it in a method called reset, without arguments"
    )


def _kept(used: nn.Module, fresh: nn.Module) -> str:
    """Return the module that is not as a fresh copy, and the attribute."""
    for name, attribute in different(fresh, used):
        return f"{name or type(used).__name__} (in {attribute})"
    return ""


def confirm(network: nn.Module, plan: TrialPlan, two: Presentation, before: Signature) -> bool:
    """Return whether time shows in the data of 2 images; `before`: without a disturbance.

    Raises TserError where they contradict it.
    """

    # Shapes alone can't tell what is time: in one image one step is changed. Nothing of the other
    # image may change with it, nothing of an earlier step, and something of a later step has to.
    seen = plan.timesteps == 1
    for after in fed_otherwise(network, plan, two, 0):
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
    after = next(fed_otherwise(network, plan, two, last), before)
    for key in before:
        rows_SN = changes(before[key], after[key])
        if len(rows_SN) > 1 and rows_SN[:last].any():
            raise TserError(
                f"layer {key[0]}: what it is fed with at a time step changes with a later one, so "
                "that time is not outermost, or the network looks ahead; tser audit says more"
            )
    return seen


def fed_otherwise(
    network: nn.Module, plan: TrialPlan, two: Presentation, step: int
) -> Iterator[Signature]:
    """Yield what calls are fed with where the first image has other values at a step, or no step.

    Values that the network does not take are left out: an encoder may take 0 to 1 alone.
    """
    for change in DISTURBANCES:
        with suppress(layouts.UnrunnableError):
            yield observe(fresh_copy(network), plan, disturbed(two, step, change))[0]


def changes(before_SN: Tensor, after_SN: Tensor) -> Tensor:
    """Return where two signatures differ, beyond rounding: [S, N]."""
    scale = before_SN.abs() + after_SN.abs()
    return (before_SN - after_SN).abs() > TOLERANCE * scale.clamp(min=1e-3)


def disturbed(two: Presentation, step: int, change: Callable[[Tensor], Tensor]) -> Presentation:
    """Return the same with other values in the first image at one step, at all with "inside"."""
    x = two.x_TN.clone()
    part = x[0] if two.layout == INSIDE else x[step, 0]
    changed = change(part.flatten()).view_as(part).to(part.dtype)
    if not x.is_floating_point():  # indices of an embedding: others that it has
        changed = changed.clamp(x.amin(), x.amax())
    part.copy_(changed)
    return replace(two, x_TN=x)


def observe(
    network: nn.Module,
    plan: TrialPlan,
    presentation: Presentation,
    chance: layouts.Chance | None = None,
) -> tuple[Signature, list[Any]]:
    """Run a network; the sum of what every call is fed with, [T, N] or [1, N], and its outputs."""
    parts: dict[tuple[str, str, int], list[Tensor]] = {}
    ordinals: collections.Counter[tuple[str, str]] = collections.Counter()
    images = presentation.x_TN.shape[presentation.images_axis]

    def note(name: str, kind: str, tensors: tuple[Tensor | None, ...]) -> None:
        key = (name, kind)
        use, _, axes = plan.learned(key, ordinals[key])
        ordinals[key] += 1
        if not any(axes):
            # Each image's alike. Were they no weights, an image would change another's.
            sums = [x.detach().double().sum() for x in tensors if x is not None]
            parts.setdefault((*key, use), []).append(torch.stack(sums).sum().expand(1, images))
        for x, found in zip(tensors, axes, strict=True):
            if x is None or found is None:
                continue
            rows = found.rows(x.detach())
            rows_SN = rows.reshape(found.steps(plan.timesteps), images, -1).double()
            # Weighted, so that two values that change places are seen.
            weights = torch.linspace(1, 2, rows_SN.shape[-1], dtype=torch.float64, device=x.device)
            parts.setdefault((*key, use), []).append((rows_SN * weights).sum(-1))
            break  # one factor of a product says enough

    def sink(met: Met) -> None:
        if isinstance(met, LayerCall):
            note(met.name, met.type, (met.x,))
        elif isinstance(met, ProductCall):
            note(met.name, met.type, tuple(factor.tensor for factor in met.product.factors))

    def leaving(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if name in plan.neurons and first_tensor(output) is not None:
            note(name, NEURON, (first_tensor(output),))

    with intercepted(network, sink, leaving):
        outputs = layouts.try_out(network, presentation, chance=chance)
    return {key: torch.cat(sums) for key, sums in parts.items()}, outputs
