"""The charts of several runs in one: runs side by side, and the cells of an ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tser_cli.report.chart_parts import (
    SERIES,
    SOFT,
    Spec,
    chart,
    coloured,
    quantity,
    steps_axis,
    tip,
    values,
)
from tser_cli.report.page_values import AblationReport, Accuracy, CellReport, Curves, Tradeoff
from tser_cli.report.page_words import unit_for
from tser_cli.report.style import PALETTE, look_of

METHOD = "method.name"
Named = Sequence[tuple[str, Any]]


def colours_of(count: int) -> list[str]:
    """Return a colour for each of `count` runs; they repeat beyond six."""
    return [SERIES[n % len(SERIES)] for n in range(count)]


def accuracies(named: Sequence[tuple[str, Accuracy]]) -> Spec:
    """Accuracy of the steps up to t, a line a run."""
    rows = [
        {
            "x": row["t"] + 0.04 * place,
            "t": row["t"],
            "run": name,
            "accuracy": 100 * row["accuracy_cumulative"],
            "low": 100 * row["low_cumulative"],
            "high": 100 * row["high_cumulative"],
        }
        for place, (name, found) in enumerate(named)
        for row in found.rows
    ]
    steps = sorted({row["t"] for row in rows})
    x, y = steps_axis(steps), quantity("accuracy", "accuracy (%)", nice=True)
    colour = _runs([name for name, _ in named])
    told = tip(("run", "run", ""), ("t", "t", "d"), ("accuracy", "accuracy %", ".2f"))
    reach = {"y": quantity("low"), "y2": {"field": "high"}}
    layers: list[Spec] = [
        {"mark": "rule", "encoding": {"x": x, **reach, "color": colour}},
        {"mark": "line", "encoding": {"x": x, "y": y, "color": colour}},
        {"mark": "point", "encoding": {"x": x, "y": y, "color": colour, "tooltip": told}},
    ]
    return chart("Accuracy of each run at each time step", layers, 270, data=values(rows))


def tradeoffs(named: Sequence[tuple[str, Tradeoff]]) -> Spec:
    """Accuracy against energy, a point a time step, a colour a run."""
    scale, unit = unit_for(max(found.steps[-1]["energy_pj"] for _, found in named))
    rows = [
        {
            "run": name,
            "t": row["t"],
            "energy": row["energy_pj"] / scale,
            "accuracy": 100 * row["accuracy"],
        }
        for name, found in named
        for row in found.steps
    ]
    title = f"energy an image ({unit}, arithmetic alone)"
    x = {**quantity("energy", title), "axis": {"format": "~g", "tickCount": 6}}
    y = quantity("accuracy", "accuracy (%)", nice=True)
    colour = _runs([name for name, _ in named])
    told = tip(
        ("run", "run", ""),
        ("t", "t", "d"),
        ("energy", f"energy {unit}", ".4~g"),
        ("accuracy", "accuracy %", ".2f"),
    )
    place = {"x": x, "y": y, "color": colour}
    layers: list[Spec] = [
        {"mark": "line", "encoding": {**place, "order": {"field": "t"}}},
        {"mark": {"type": "point", "size": 80}, "encoding": {**place, "tooltip": told}},
        {
            "mark": {"type": "text", "dx": 8, "dy": -8, "align": "left"},
            "encoding": {**place, "text": {"field": "t"}},
        },
    ]
    return chart("Accuracy against energy of each run", layers, 270, data=values(rows))


def losses(named: Sequence[tuple[str, Curves]]) -> Spec | None:
    """The loss over the epochs, a line a run; None where no run has one."""
    rows = [
        {"run": name, "epoch": row["epoch"], "loss": row["loss"]}
        for name, found in named
        for row in found.rows
        if row.get("loss") is not None
    ]
    if not rows:
        return None
    numbers = [row["loss"] for row in rows]
    wide = min(numbers) > 0 and max(numbers) > 30 * min(numbers)
    x = {**quantity("epoch", "epoch", nice=False), "axis": {"tickMinStep": 1, "format": "d"}}
    y = quantity("loss", "loss", **({"type": "log"} if wide else {}))
    y["axis"] = {"tickCount": 5, "format": "~g"}
    colour = _runs([name for name, _ in named])
    told = tip(("run", "run", ""), ("epoch", "epoch", "d"), ("loss", "loss", ".4~g"))
    place = {"x": x, "y": y, "color": colour}
    layers: list[Spec] = [
        {"mark": "line", "encoding": place},
        {"mark": {"type": "point", "size": 35}, "encoding": {**place, "tooltip": told}},
    ]
    return chart("Loss of each run over the epochs", layers, 200, data=values(rows))


def _runs(names: Sequence[str]) -> Spec:
    return coloured("run", names, colours_of(len(names)))


def cell_colours(found: AblationReport, cells: Sequence[CellReport]) -> list[str]:
    """Return a colour a cell: the method's own, where methods alone differ, else by place."""
    if METHOD in found.axes:
        methods = [look_of(str(cell.row[METHOD])).colour for cell in cells]
        return [SERIES[PALETTE.index(colour)] for colour in methods]
    return colours_of(len(cells))


def cells(found: AblationReport, shown: Sequence[CellReport], what: str) -> Spec:
    """A line a cell: its mean with its 95 % interval, and every seed as a faint point.

    `what`: "accuracy", or "difference" to the baseline.
    """
    names = {"accuracy": "accuracy (%)", "difference": "points"}
    rows = [_mean_row(cell, place, what) for place, cell in enumerate(shown)]
    seeds = [
        {"place": place, "label": cell.label, "value": value}
        for place, cell in enumerate(shown)
        for value in getattr(cell, what)
    ]
    labels = [cell.label for cell in shown]
    colour = coloured("label", labels, cell_colours(found, shown), legend=None)
    y: Spec = {"field": "place", "type": "ordinal", "axis": None}
    x = {**quantity("value", names[what], nice=True), "axis": {"grid": True, "tickCount": 6}}
    told = tip(
        ("label", "", ""),
        ("value", "mean", ".2f"),
        ("low", "95 % from", ".2f"),
        ("high", "to", ".2f"),
    )
    title = {"type": "text", "align": "left", "x": 0, "dy": -15, "fontSize": 11.5}
    layers: list[Spec] = [
        {
            "data": values(rows),
            "transform": [{"filter": "isValid(datum.low)"}],
            "mark": "rule",
            "encoding": {
                "y": y,
                "x": {**x, "field": "low"},
                "x2": {"field": "high"},
                "color": colour,
            },
        },
        {
            "data": values(seeds),
            "mark": {"type": "point", "size": 22, "opacity": 0.45, "yOffset": 8},
            "encoding": {"y": y, "x": x, "color": colour},
        },
        {
            "data": values(rows),
            "transform": [{"filter": "isValid(datum.value)"}],
            "mark": {"type": "point", "size": 80},
            "encoding": {"y": y, "x": x, "color": colour, "tooltip": told},
        },
        {
            "data": values(rows),
            "mark": title,
            "encoding": {"y": y, "text": {"field": "title"}},
        },
    ]
    if what == "difference":
        zero = {"type": "rule", "color": SOFT, "strokeDash": [3, 3], "strokeWidth": 1}
        layers.insert(0, {"data": values([{"value": 0}]), "mark": zero, "encoding": {"x": x}})
    return chart(f"{names[what]} of each cell", layers, {"step": 44})


def _mean_row(cell: CellReport, place: int, what: str) -> dict[str, Any]:
    found, reach = getattr(cell, what), cell.intervals[what] or (None, None)
    base = " (baseline)" if what == "difference" and cell.row["baseline"] else ""
    return {
        "place": place,
        "label": cell.label,
        "title": f"{cell.label}{base}",
        "value": sum(found) / len(found) if found else None,
        "low": reach[0],
        "high": reach[1],
    }


def cell_steps(found: AblationReport, shown: Sequence[CellReport]) -> Spec | None:
    """Accuracy of each step alone, a line a cell; None for one step."""
    rows = [
        {**row, "x": row["t"] + 0.05 * (place - (len(shown) - 1) / 2), "label": cell.label}
        for place, cell in enumerate(shown)
        for row in cell.at_t
    ]
    steps = sorted({row["t"] for row in rows})
    if len(steps) < 2:
        return None
    labels = [cell.label for cell in shown]
    colour = coloured("label", labels, cell_colours(found, shown))
    x, y = steps_axis(steps), quantity("mean", "accuracy (%)", nice=True)
    told = tip(("label", "", ""), ("t", "t", "d"), ("mean", "mean", ".2f"))
    low = {"x": x, "y": quantity("low"), "y2": {"field": "high"}, "color": colour}
    layers: list[Spec] = [
        {"transform": [{"filter": "isValid(datum.low)"}], "mark": "rule", "encoding": low},
        {"mark": "line", "encoding": {"x": x, "y": y, "color": colour}},
        {"mark": "point", "encoding": {"x": x, "y": y, "color": colour, "tooltip": told}},
    ]
    return chart("Accuracy of each cell at each time step", layers, 260, data=values(rows))


def cell_energy(found: AblationReport, shown: Sequence[CellReport]) -> Spec | None:
    """Accuracy against energy: a cell's mean with both intervals; None without energies."""
    with_energy = [cell for cell in shown if cell.energy_pj and cell.accuracy]
    if not with_energy:
        return None
    scale, unit = unit_for(max(max(cell.energy_pj) for cell in with_energy))
    rows = [_energy_row(cell, scale) for cell in with_energy]
    labels = [cell.label for cell in with_energy]
    colour = coloured("label", labels, cell_colours(found, with_energy))
    x = quantity("energy", f"energy an image ({unit}, arithmetic alone)", nice=True)
    x["axis"] = {"format": "~g", "tickCount": 6, "grid": True}
    y = quantity("accuracy", "accuracy (%)", nice=True)
    told = tip(
        ("label", "", ""),
        ("energy", f"energy {unit}", ".4~g"),
        ("accuracy", "accuracy %", ".2f"),
    )
    sound = [{"filter": "isValid(datum.low) && isValid(datum.left)"}]
    up = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    across = {"y": y, "x": {**x, "field": "left"}, "x2": {"field": "right"}, "color": colour}
    layers: list[Spec] = [
        {"transform": sound, "mark": "rule", "encoding": up},
        {"transform": sound, "mark": "rule", "encoding": across},
        {
            "mark": {"type": "point", "size": 80},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": told},
        },
    ]
    return chart("Accuracy of each cell against its energy", layers, 260, data=values(rows))


def _energy_row(cell: CellReport, scale: float) -> dict[str, Any]:
    accuracy, energy = cell.intervals["accuracy"], cell.intervals["energy_pj"]
    return {
        "label": cell.label,
        "accuracy": sum(cell.accuracy) / len(cell.accuracy),
        "energy": sum(cell.energy_pj) / len(cell.energy_pj) / scale,
        "low": accuracy[0] if accuracy else None,
        "high": accuracy[1] if accuracy else None,
        "left": energy[0] / scale if energy else None,
        "right": energy[1] / scale if energy else None,
    }
