"""The charts of a student's energy: by layer, beside other networks, against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tser_cli.report.chart_parts import (
    BAD,
    LINE,
    OTHER,
    SOFT,
    STUDENT,
    Spec,
    chart,
    coloured,
    quantity,
    ramp,
    tip,
    values,
)
from tser_cli.report.energy_report import joules
from tser_cli.report.page_values import Duel, Energy, Tradeoff
from tser_cli.report.page_words import duel_sentence, unit_for


def firing(found: Energy) -> Spec | None:
    """Firing rate of what feeds each layer, a point a time step; None where nothing spikes."""
    rows = [
        {"layer": row["layer"], "t": row["t"], "rate": 100 * row["firing_rate"]}
        for row in found.layers
        if row["op"] == "AC"
    ]
    if not rows:
        return None
    steps = sorted({row["t"] for row in rows})
    y = _layer_axis()
    x = {
        **quantity("rate", "inputs that spike (%)", zero=True),
        "axis": {"orient": "top", "grid": True, "tickCount": 5},
    }
    told = tip(("layer", "", ""), ("t", "t", "d"), ("rate", "firing rate %", ".2f"))
    span = {
        "y": y,
        "x": {**x, "aggregate": "min", "title": None},
        "x2": {"field": "rate", "aggregate": "max"},
    }
    layers: list[Spec] = [
        {"mark": {"type": "rule", "color": LINE, "strokeWidth": 3}, "encoding": span},
        {
            "mark": {"type": "point", "size": 55, "stroke": STUDENT, "strokeWidth": 1},
            "encoding": {"y": y, "x": x, "fill": _step_colour(steps), "tooltip": told},
        },
    ]
    return chart("Firing rate by layer and time step", layers, {"step": 17}, data=values(rows))


def by_layer(found: Energy) -> Spec:
    """Energy of each layer, stacked by time step."""
    scale, unit = unit_for(max(row["energy_pj"] for row in found.whole))
    rows = [
        {"layer": row["layer"], "t": row["t"], "energy": row["energy_pj"] / scale, "op": row["op"]}
        for row in found.layers
    ]
    steps = sorted({row["t"] for row in rows})
    x = {
        "field": "energy",
        "type": "quantitative",
        "title": f"energy an image ({unit})",
        "stack": "zero",
        "axis": {"orient": "top", "grid": True, "tickCount": 5},
    }
    told = tip(
        ("layer", "", ""),
        ("t", "t", "d"),
        ("energy", f"energy {unit}", ".4~g"),
        ("op", "operations", ""),
    )
    encoding = {
        "y": _layer_axis(),
        "x": x,
        "fill": _step_colour(steps),
        "order": {"field": "t"},
        "tooltip": told,
    }
    bar = {"mark": {"type": "bar", "height": 10}, "encoding": encoding}
    return chart("Energy by layer and time step", [bar], {"step": 17}, data=values(rows))


def _layer_axis() -> Spec:
    return {"field": "layer", "type": "nominal", "sort": None, "title": None}


def _step_colour(steps: Sequence[int]) -> Spec:
    scale = {"domain": list(steps), "range": ramp(len(steps))}
    legend = {
        "title": "t =",
        "titleOrient": "left",
        "titleColor": SOFT,
        "titleFontWeight": 400,
        "symbolType": "circle",
    }
    return {"field": "t", "type": "ordinal", "scale": scale, "legend": legend}


def duels(found: Sequence[Duel]) -> Spec:
    """Each comparison as two points on a line: the student and the other network."""
    _, unit = unit_for(found[0].student_pj)
    scale = unit_for(found[0].student_pj)[0]
    shown = [duel for duel in found if duel.student_pj > 0 and duel.other_pj > 0]
    rows = [
        {
            "place": place,
            "name": duel.name,
            "who": who,
            "energy": energy / scale,
            "told": joules(energy),
            "verdict": duel_sentence(duel),
            "student": duel.student_pj / scale,
            "other": duel.other_pj / scale,
        }
        for place, duel in enumerate(shown)
        for who, energy in (("this student", duel.student_pj), ("the other", duel.other_pj))
    ]
    y = {"field": "place", "type": "ordinal", "axis": None}
    x = {
        **quantity("energy", f"energy an image ({unit}, logarithmic)", type="log"),
        "axis": {"format": "~g", "tickCount": 6, "grid": True},
    }
    once = [{"filter": "datum.who == 'this student'"}]
    colour = coloured("who", ("this student", "the other"), (STUDENT, OTHER))
    told = tip(("name", "", ""), ("who", "", ""), ("told", "energy", ""))
    title = {"type": "text", "align": "left", "x": 0, "dy": -15, "fontSize": 11.5}
    verdict = {**title, "align": "right", "x": "width", "fill": SOFT}
    layers: list[Spec] = [
        {
            "transform": once,
            "mark": {"type": "rule", "color": LINE, "strokeWidth": 3},
            "encoding": {"y": y, "x": {**x, "field": "student"}, "x2": {"field": "other"}},
        },
        {"transform": once, "mark": title, "encoding": {"y": y, "text": {"field": "name"}}},
        {
            "transform": once,
            "mark": {**verdict, "x": {"expr": "width"}},
            "encoding": {"y": y, "text": {"field": "verdict"}},
        },
        {
            "mark": {"type": "point", "size": 90},
            "encoding": {"y": y, "x": x, "color": colour, "tooltip": told},
        },
    ]
    return chart(
        "The student's energy beside other networks", layers, {"step": 46}, data=values(rows)
    )


def tradeoff(found: Tradeoff) -> Spec:
    """Accuracy against energy: a point a time step, early exit as a line, teacher and ANN."""
    scale, unit = unit_for(found.steps[-1]["energy_pj"])
    rows = [_place(row, scale, f"t = {row['t']}") for row in found.steps]
    exits = [
        {
            **_place(row, scale, "early exit"),
            "threshold": row["threshold"],
            "steps": row["mean_steps"],
        }
        for row in found.exits
    ]
    x = {
        **quantity("energy", f"energy an image ({unit}, arithmetic alone)", type="log"),
        "axis": {"format": "~g", "tickCount": 6},
    }
    y = quantity("accuracy", "accuracy (%)", nice=True)
    place = {"x": x, "y": y}
    told = tip(
        ("name", "", ""), ("energy", f"energy {unit}", ".4~g"), ("accuracy", "accuracy %", ".2f")
    )
    more = tip(("threshold", "confidence", "~g"), ("steps", "mean steps", ".2f"))
    label = {"type": "text", "align": "left", "dx": 8, "dy": -8}
    layers: list[Spec] = [
        *_ann_line(found.ann_pj, scale),
        {
            "data": values(rows),
            "mark": {"type": "line", "strokeDash": [4, 3], "color": STUDENT, "strokeWidth": 1},
            "encoding": place,
        },
    ]
    if exits:
        layers += [
            {
                "data": values(exits),
                "mark": {"type": "line", "color": BAD},
                "encoding": {**place, "order": {"field": "energy"}},
            },
            {
                "data": values(exits),
                "mark": {"type": "point", "color": BAD, "size": 30},
                "encoding": {**place, "tooltip": [*told, *more]},
            },
        ]
    layers += [
        {
            "data": values(rows),
            "mark": {"type": "point", "color": STUDENT, "size": 90},
            "encoding": {**place, "tooltip": told},
        },
        {"data": values(rows), "mark": label, "encoding": {**place, "text": {"field": "name"}}},
    ]
    if found.teacher is not None:
        point = [
            {
                "energy": found.teacher[0] / scale,
                "accuracy": 100 * found.teacher[1],
                "name": "teacher (ANN)",
            }
        ]
        end = {**label, "align": "right", "dx": -9, "dy": 0, "fill": SOFT, "baseline": "middle"}
        layers += [
            {
                "data": values(point),
                "mark": {"type": "point", "shape": "diamond", "color": OTHER, "size": 100},
                "encoding": {**place, "tooltip": told},
            },
            {"data": values(point), "mark": end, "encoding": {**place, "text": {"field": "name"}}},
        ]
    return chart("Accuracy against energy", layers, 300)


def _place(row: Mapping[str, Any], scale: float, name: str) -> dict[str, Any]:
    return {"energy": row["energy_pj"] / scale, "accuracy": 100 * row["accuracy"], "name": name}


def _ann_line(ann_pj: float | None, scale: float) -> list[Spec]:
    """Return a line at the energy of the ANN of the same shape, whose accuracy is not known."""
    if not ann_pj:
        return []
    data = values([{"energy": ann_pj / scale, "name": "ANN of this shape"}])
    x = quantity("energy", None, type="log")
    mark = {"type": "text", "align": "right", "dx": -5, "y": 8, "fill": SOFT}
    return [
        {
            "data": data,
            "mark": {"type": "rule", "strokeDash": [2, 3], "color": OTHER},
            "encoding": {"x": x},
        },
        {"data": data, "mark": mark, "encoding": {"x": x, "text": {"field": "name"}}},
    ]
