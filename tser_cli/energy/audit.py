"""What can be wrong with a spiking network without any error: found by running it.

Copies of the network are run, in float64 where it can, so that a difference is no rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor, nn

from tser_cli.energy import checks
from tser_cli.energy.counts import Counts
from tser_cli.energy.findings import Audit, Finding, Subject, Unchecked
from tser_cli.energy.layouts import Presentation, fresh_copy, try_out
from tser_cli.energy.network_counter import count_operations
from tser_cli.energy.plan import make_plan
from tser_cli.errors import TserError


def audit(
    network: nn.Module,
    presentation: Presentation,
    timesteps: int,
    labels_N: Tensor | None = None,
    declared: dict[str, str] | None = None,
) -> Audit:
    """Make every check. Raises TserError where the network can't be run or counted at all."""
    exact, shown = _in_double(network, presentation)
    plan = make_plan(exact, shown, timesteps)
    subject = Subject(exact, shown, plan, declared)
    counts, met = _counted(subject)
    findings, skipped = [], []
    tests: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("reset", lambda: checks.check_reset(subject)),
        ("batch independence", lambda: checks.check_batch(subject)),
        ("causality", lambda: checks.check_causality(subject)),
        ("spike-driven inputs", lambda: checks.check_inputs(counts, met, declared)),
        ("firing", lambda: checks.check_firing(counts)),
        ("order of axes", lambda: checks.check_order(subject, labels_N)),
        ("numbers", lambda: checks.check_numbers(subject)),
    ]
    for name, check in tests:
        try:
            findings += list(check())
        except Unchecked as reason:
            skipped.append((name, str(reason)))
    return Audit(tuple(findings), tuple(skipped))


def _counted(subject: Subject) -> tuple[Counts, dict[str, dict[str, int]]]:
    made, shown = fresh_copy(subject.network), subject.presentation
    with count_operations(made, shown.layout, subject.plan.timesteps, detailed=True) as counter:
        counter.plan = subject.plan
        try_out(made, shown)
    met = {name: {k: n for k, n in kinds.items() if k} for name, kinds in counter.kinds_met.items()}
    return counter.counts(), met


def _in_double(network: nn.Module, presentation: Presentation) -> tuple[nn.Module, Presentation]:
    """Return the network in float64, or as it is where it can't compute so."""
    try:
        made = copy.deepcopy(network).double()
        shown = replace(presentation, x_TN=presentation.x_TN.double())
        try_out(fresh_copy(made), shown.of(2))
    except (TserError, RuntimeError, TypeError):
        return network, presentation
    return made, shown
