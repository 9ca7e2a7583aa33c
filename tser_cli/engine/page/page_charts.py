"""Which charts a report page has: by the id of the place where each is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tser_cli.engine.page import cell_charts, energy_charts, group_charts, run_charts
from tser_cli.engine.page.chart_parts import Spec
from tser_cli.engine.page.values import AblationReport, Missing, Page, RunReport

MOST_TERMS = 24  # of a loss


def charts_of(page: Page) -> dict[str, Spec]:
    """Return the charts of a page; ids begin with the part they belong to: r1, a1, compare."""
    made: dict[str, Spec | None] = {}
    for place, run in enumerate(page.runs, start=1):
        made |= {f"r{place}-{name}": spec for name, spec in _of_run(run)}
    for place, ablation in enumerate(page.ablations, start=1):
        made |= {f"a{place}-{name}": spec for name, spec in _of_ablation(ablation)}
    if len(page.runs) > 1:
        made |= {f"compare-{name}": spec for name, spec in _of_all(page)}
    return {name: spec for name, spec in made.items() if spec is not None}


def curves_of(run: RunReport) -> dict[str, str]:
    """Return the titles of the training curves, by the ends of their ids."""
    if isinstance(run.curves, Missing):
        return {}
    terms = [*run.curves.terms[:MOST_TERMS], "lr"]
    titles = {"lr": "learning rate"}
    listed = {f"term{n}": titles.get(name, name) for n, name in enumerate(terms)}
    return {**listed, "accuracies": "accuracy (%)"}


def _of_run(run: RunReport) -> Iterator[tuple[str, Spec | None]]:
    if not isinstance(run.accuracy, Missing) and len(run.accuracy.rows) > 1:
        yield "accuracy", run_charts.accuracy(run.accuracy)
    if not isinstance(run.mistakes, Missing):
        yield "confusion", run_charts.confusion(run.mistakes)
    if not isinstance(run.energy, Missing):
        yield "firing", energy_charts.firing(run.energy)
        yield "layers", energy_charts.by_layer(run.energy)
    if run.duels:
        yield "duels", energy_charts.duels(run.duels)
    if not isinstance(run.tradeoff, Missing):
        yield "tradeoff", energy_charts.tradeoff(run.tradeoff)
    if not isinstance(run.curves, Missing):
        for n, name in enumerate([*run.curves.terms[:MOST_TERMS], "lr"]):
            yield f"term{n}", run_charts.term(run.curves, name)
        yield "accuracies", run_charts.accuracies(run.curves)


def _of_ablation(found: AblationReport) -> Iterator[tuple[str, Spec | None]]:
    if isinstance(found.cells, Missing):
        return
    shown = [cell for cell in found.cells if cell.accuracy]
    if shown:
        yield "accuracy", cell_charts.cells(found, shown, "accuracy")
        yield "steps", cell_charts.steps(found, shown)
        yield "energy", cell_charts.energy(found, shown)
    if any(cell.difference for cell in shown):
        yield "differences", cell_charts.cells(found, shown, "difference")


def _of_all(page: Page) -> Iterator[tuple[str, Spec | None]]:
    for name, part, draw in (
        ("accuracy", "accuracy", group_charts.accuracies),
        ("tradeoff", "tradeoff", group_charts.tradeoffs),
        ("loss", "curves", group_charts.losses),
    ):
        found: list[tuple[str, Any]] = [
            (letter, getattr(run, part))
            for letter, run in zip(page.letters, page.runs, strict=True)
            if not isinstance(getattr(run, part), Missing)
        ]
        if len(found) > 1:
            yield name, draw(found)
