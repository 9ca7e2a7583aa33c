"""Counting the operations of any network, whatever gives it its time steps.

    with count_operations(network, layout="time-first") as counter:
        network(x_TNCHW)
    counts = counter.counts()

The first call is tried out on a copy of the network with a few images, to find out where steps
and images are (see `plan.py`). What feeds a layer is found from the data, call by call.
States are reset before each batch, by the library that the neurons belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from tser_cli.base.errors import TserError, unknown
from tser_cli.energy.any_network.find_layout import find_plan
from tser_cli.energy.any_network.layouts import AUTO, LAYOUTS
from tser_cli.energy.any_network.plan import TrialPlan
from tser_cli.energy.any_network.watch import intercepted
from tser_cli.energy.counter import Counter, Met, first_tensor
from tser_cli.energy.neurons import reset_states

Leaving = Callable[[nn.Module, tuple[Any, ...], Any], None]


class TrialCounter(Counter):
    """The counter with a plan by trial: `plan` is what was found, None before the first call."""

    plan: TrialPlan | None

    def kinds(self) -> dict[str, str]:
        """Return what feeds each layer, as it was found; "zeros alone" where nothing else came."""
        return {
            name: self.kind(name) if any(met) else "zeros alone"
            for name, met in self.kinds_met.items()
        }

    def differing(self) -> dict[str, dict[str, int]]:
        """Return the layers that were fed with one kind in some calls and another in others."""
        met = {name: {k: n for k, n in of.items() if k} for name, of in self.kinds_met.items()}
        return {name: kinds for name, kinds in met.items() if len(kinds) > 1}


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
    uncompiled meanwhile, since compiled code can't be watched. Raises TserError where the network
    can't be counted, or its layout can't be told.
    """
    if layout not in (*LAYOUTS, AUTO):
        raise TserError(unknown("layout", layout, (*LAYOUTS, AUTO)))
    plain: nn.Module = getattr(network, "_orig_mod", network)
    counter = TrialCounter(None, detailed)

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not plain:  # a copy on trial, which carries the hook along
            return
        if counter.plan is None:
            reset_states(plain)
            counter.plan = find_plan(plain, layout, timesteps, args, kwargs)
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

    with ExitStack() as stack:
        hook = plain.register_forward_pre_hook(begin, with_kwargs=True)
        stack.callback(hook.remove)
        stack.enter_context(intercepted(plain, operation, left))
        yield counter
