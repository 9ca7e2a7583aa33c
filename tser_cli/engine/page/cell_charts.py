"""The charts of an ablation: its cells with their intervals, and every seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tser_cli.engine.page.chart_parts import (
    SERIES,
    SOFT,
    Spec,
    chart,
    coloured,
    layer,
    quantity,
    steps_axis,
    tip,
    values,
)
from tser_cli.engine.page.group_charts import colours_of
from tser_cli.engine.page.run_charts import ACCURACY
from tser_cli.engine.page.values import AblationReport, CellReport
from tser_cli.report.style import PALETTE, look_of
from tser_cli.settings.fields import unit_of

METHOD = "method.name"
TALL = 44  # pixels of a line with its name above it
HAS_INTERVAL = [{"filter": "isValid(datum.low)"}]
HAS_BOTH = [{"filter": "isValid(datum.low) && isValid(datum.left)"}]
NAMES = {"accuracy": ACCURACY, "difference": "points"}


def cells(found: AblationReport, shown: Sequence[CellReport], what: str) -> Spec:
    """A line a cell: its mean with its 95 % interval, and every seed as a faint point.

    `what`: "accuracy", or "difference" to the baseline.
    """
    means = [_mean_row(cell, place, what) for place, cell in enumerate(shown)]
    seeds = [
        {"place": place, "label": cell.label, "value": value}
        for place, cell in enumerate(shown)
        for value in getattr(cell, what)
    ]
    y: Spec = {"field": "place", "type": "ordinal", "axis": None}
    x = quantity("value", NAMES[what], nice=True)
    x["axis"] = {"grid": True, "tickCount": 6, "format": "~f"}
    place = {"y": y, "x": x, "color": _labels(found, shown, legend=None)}
    told = tip(
        ("label", "", ""),
        ("value", "mean", ".2f"),
        ("low", "95 % from", ".2f"),
        ("high", "to", ".2f"),
    )
    reach = {**place, "x": {**x, "field": "low"}, "x2": {"field": "high"}}
    name, is_mean = {"y": y, "text": {"field": "title"}}, [{"filter": "isValid(datum.value)"}]
    zero = layer("rule", {"x": x}, [{"value": 0}], color=SOFT, strokeDash=[3, 3], strokeWidth=1)
    layers = [
        *([zero] if what == "difference" else []),
        layer("rule", reach, means, where=HAS_INTERVAL),
        layer("point", place, seeds, size=22, opacity=0.45, yOffset=8),
        layer("point", {**place, "tooltip": told}, means, where=is_mean, size=80),
        layer("text", name, means, align="left", x=0, dy=-15, fontSize=11.5),
    ]
    return chart(f"{what} of each cell", layers, TALL * len(shown))


def _mean_row(cell: CellReport, place: int, what: str) -> dict[str, Any]:
    found, reach = getattr(cell, what), cell.intervals[what] or (None, None)
    base = " (baseline)" if what == "difference" and cell.row["baseline"] else ""
    return {
        **{"place": place, "label": cell.label, "title": f"{cell.label}{base}"},
        **{"value": _mean(found), "low": reach[0], "high": reach[1]},
    }


def _mean(found: Sequence[float]) -> float | None:
    return sum(found) / len(found) if found else None


def steps(found: AblationReport, shown: Sequence[CellReport]) -> Spec | None:
    """Accuracy of each step alone, a line a cell; None for one step."""
    rows = [
        {**row, "x": row["t"] + 0.05 * (place - (len(shown) - 1) / 2), "label": cell.label}
        for place, cell in enumerate(shown)
        for row in cell.at_t
    ]
    seen = sorted({row["t"] for row in rows})
    if len(seen) < 2:
        return None
    y = quantity("mean", ACCURACY, nice=True)
    place = {"x": steps_axis(seen), "y": y, "color": _labels(found, shown)}
    told = tip(("label", "", ""), ("t", "t", "d"), ("mean", "mean", ".2f"))
    reach = {**place, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
    layers = [
        layer("rule", reach, where=HAS_INTERVAL),
        layer("line", place),
        layer("point", {**place, "tooltip": told}),
    ]
    return chart("Accuracy of each cell at each time step", layers, 250, data=values(rows))


def energy(found: AblationReport, shown: Sequence[CellReport]) -> Spec | None:
    """Accuracy against energy: a cell's mean with both intervals; None without energies."""
    counted = [cell for cell in shown if cell.energy_pj and cell.accuracy]
    if not counted:
        return None
    scale, unit = unit_of(max(max(cell.energy_pj) for cell in counted))
    rows = [_energy_row(cell, scale) for cell in counted]
    x = quantity("energy", f"energy an image ({unit}, arithmetic alone)", nice=True)
    x["axis"] = {"format": "~g", "tickCount": 6, "grid": True}
    y = quantity("accuracy", ACCURACY, nice=True)
    place = {"x": x, "y": y, "color": _labels(found, counted)}
    told = tip(
        ("label", "", ""),
        ("energy", f"energy {unit}", ".4~g"),
        ("accuracy", "accuracy %", ".2f"),
    )
    up = {**place, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
    across = {**place, "x": {**x, "field": "left"}, "x2": {"field": "right"}}
    layers = [
        layer("rule", up, where=HAS_BOTH),
        layer("rule", across, where=HAS_BOTH),
        layer("point", {**place, "tooltip": told}, size=80),
    ]
    return chart("Accuracy of each cell against its energy", layers, 250, data=values(rows))


def _energy_row(cell: CellReport, scale: float) -> dict[str, Any]:
    accuracy = cell.intervals["accuracy"] or (None, None)
    spent = cell.intervals["energy_pj"]
    return {
        "label": cell.label,
        "accuracy": _mean(cell.accuracy),
        "energy": sum(cell.energy_pj) / len(cell.energy_pj) / scale,
        **{"low": accuracy[0], "high": accuracy[1], "left": spent and spent[0] / scale},
        "right": spent and spent[1] / scale,
    }


def _labels(found: AblationReport, shown: Sequence[CellReport], **more: Any) -> Spec:
    """Return a colour a cell: its method's, where that tells all cells apart, else by place."""
    colours = colours_of(len(shown))
    if METHOD in found.axes:
        of_methods = [look_of(str(cell.row[METHOD])).colour for cell in shown]
        if len(set(of_methods)) == len(shown):
            colours = [SERIES[PALETTE.index(colour)] for colour in of_methods]
    return coloured("label", [cell.label for cell in shown], colours, **more)
