"""The charts of a student's energy: by layer, beside other networks, against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tser_cli.engine.page.chart_parts import (
    BAD,
    LINE,
    OTHER,
    SOFT,
    STUDENT,
    Spec,
    chart,
    coloured,
    layer,
    quantity,
    ramp,
    spread,
    tip,
    values,
)
from tser_cli.engine.page.values import Duel, Energy, Tradeoff
from tser_cli.report.words import times
from tser_cli.settings.fields import joules, unit_of

ROW = 17  # pixels of a layer
TALL = 46  # pixels of a line with its name above it
ONCE = [{"filter": "datum.who == 'this student'"}]
ON_TOP = {"orient": "top", "grid": True, "tickCount": 5, "format": ",~f"}


def firing(found: Energy) -> Spec | None:
    """Firing rate of what feeds each layer, a point a time step; None where nothing spikes."""
    rows = [
        {"layer": row["layer"], "t": row["t"], "rate": 100 * row["firing_rate"]}
        for row in found.layers
        if row["op"] == "AC"
    ]
    if not rows:
        return None
    y, title = _layer_axis(found), "inputs that spike (%)"
    x = {**quantity("rate", title, zero=True), "axis": ON_TOP}
    told = tip(("layer", "", ""), ("t", "t", "d"), ("rate", "firing rate %", ".2f"))
    least = {**x, "aggregate": "min"}
    edge: Spec = {"stroke": STUDENT, "strokeWidth": 1}
    span = {"y": y, "x": least, "x2": {"field": "rate", "aggregate": "max"}}
    colour = _step_colour(sorted({row["t"] for row in rows}))
    layers = [
        layer("rule", span, color=LINE, strokeWidth=3),
        layer("point", {"y": y, "x": x, "fill": colour, "tooltip": told}, size=55, **edge),
    ]
    height = ROW * len(found.whole)
    return chart("Firing rate by layer and time step", layers, height, data=values(rows))


def by_layer(found: Energy) -> Spec:
    """Energy of each layer, stacked by time step."""
    scale, unit = unit_of(max(row["energy_pj"] for row in found.whole))
    rows = [
        {"layer": row["layer"], "t": row["t"], "energy": row["energy_pj"] / scale, "op": row["op"]}
        for row in found.layers
    ]
    x = {
        **{"field": "energy", "type": "quantitative", "title": f"energy an image ({unit})"},
        **{"stack": "zero", "axis": ON_TOP},
    }
    told = tip(
        ("layer", "", ""),
        ("t", "t", "d"),
        ("energy", f"energy {unit}", ".4~g"),
        ("op", "operations", ""),
    )
    colour = _step_colour(sorted({row["t"] for row in rows}))
    place = {"y": _layer_axis(found), "x": x, "fill": colour, "order": {"field": "t"}}
    bars = layer("bar", {**place, "tooltip": told}, height=10)
    height = ROW * len(found.whole)
    return chart("Energy by layer and time step", [bars], height, data=values(rows))


def _layer_axis(found: Energy) -> Spec:
    """Return the axis of all layers, in their order: the same in both charts."""
    names = list(dict.fromkeys(row["layer"] for row in found.whole))
    scale = {"domain": names}
    return {"field": "layer", "type": "nominal", "sort": None, "title": None, "scale": scale}


def _step_colour(steps: Sequence[int]) -> Spec:
    scale = {"domain": list(steps), "range": ramp(len(steps))}
    title = {"title": "t =", "titleOrient": "left", "titleColor": SOFT, "titleFontWeight": 400}
    legend = {**title, "symbolType": "circle"}
    return {"field": "t", "type": "ordinal", "scale": scale, "legend": legend}


def duels(found: Sequence[Duel]) -> Spec | None:
    """Each comparison as two points on a line: the student and the other network."""
    shown = [duel for duel in found if duel.sound]
    if not shown:
        return None
    scale, unit = unit_of(shown[0].student_pj)
    rows = [row for place, duel in enumerate(shown) for row in _duel_rows(place, duel, scale)]
    y = {"field": "place", "type": "ordinal", "axis": None}
    x = spread("energy", f"energy an image ({unit})", [row["energy"] for row in rows])
    x["axis"]["grid"] = True
    colour = coloured("who", ("this student", "the other"), (STUDENT, OTHER))
    told = tip(("name", "", ""), ("who", "", ""), ("told", "energy", ""))
    line = {"y": y, "x": {**x, "field": "student"}, "x2": {"field": "other"}}
    name, verdict = ({"y": y, "text": {"field": field}} for field in ("name", "verdict"))
    text: Spec = {"dy": -15, "fontSize": 11.5, "where": ONCE}
    layers = [
        layer("rule", line, color=LINE, strokeWidth=3, where=ONCE),
        layer("text", name, align="left", x=0, **text),
        layer("text", verdict, align="right", x={"expr": "width"}, fill=SOFT, **text),
        layer("point", {"y": y, "x": x, "color": colour, "tooltip": told}, size=90),
    ]
    said = "The student's energy beside that of other networks"
    return chart(said, layers, TALL * len(shown), data=values(rows))


def _duel_rows(place: int, duel: Duel, scale: float) -> list[dict[str, Any]]:
    common = {
        **{"place": place, "name": duel.name, "verdict": times(duel.ratio)},
        **{"student": duel.student_pj / scale, "other": duel.other_pj / scale},
    }
    both = (("this student", duel.student_pj), ("the other", duel.other_pj))
    return [{**common, "who": who, "energy": pj / scale, "told": joules(pj)} for who, pj in both]


def tradeoff(found: Tradeoff) -> Spec:
    """Accuracy against energy: a point a time step, early exit as a line, teacher and ANN."""
    scale, unit = unit_of(found.steps[-1]["energy_pj"])
    steps = [_place(row, scale, f"t = {row['t']}") for row in found.steps]
    exits = [
        {**_place(row, scale, "early exit"), "threshold": row["threshold"], "n": row["mean_steps"]}
        for row in found.exits
    ]
    ann = [{"energy": found.ann_pj / scale, "name": "ANN of this shape"}] if found.ann_pj else []
    teacher = []
    if found.teacher is not None:
        row = {"energy_pj": found.teacher[0], "accuracy": found.teacher[1]}
        teacher = [_place(row, scale, "teacher")]
    every = [row["energy"] for row in (*steps, *exits, *ann, *teacher)]
    x = spread("energy", f"energy an image ({unit}, arithmetic alone)", every)
    y = quantity("accuracy", "accuracy (%)", nice=True)
    place = {"x": x, "y": y}
    told = tip(
        ("name", "", ""), ("energy", f"energy {unit}", ".4~g"), ("accuracy", "accuracy %", ".2f")
    )
    layers = [
        *_ann_line(ann, x),
        layer("line", place, steps, strokeDash=[4, 3], color=STUDENT, strokeWidth=1),
        *(_exit_line(exits, place, told) if exits else []),
        layer("point", {**place, "tooltip": told}, steps, color=STUDENT, size=90),
        layer("text", {**place, "text": {"field": "name"}}, steps, align="left", dx=8, dy=-9),
        *(_teacher_point(teacher, place, told) if teacher else []),
    ]
    return chart("Accuracy against energy", layers, 280)


def _place(row: Mapping[str, Any], scale: float, name: str) -> dict[str, Any]:
    return {"energy": row["energy_pj"] / scale, "accuracy": 100 * row["accuracy"], "name": name}


def _exit_line(exits: Sequence[Mapping[str, Any]], place: Spec, told: list[Spec]) -> list[Spec]:
    more = tip(("threshold", "confidence", "~g"), ("n", "mean steps", ".2f"))
    return [
        layer("line", {**place, "order": {"field": "energy"}}, exits, color=BAD),
        layer("point", {**place, "tooltip": [*told, *more]}, exits, color=BAD, size=30),
    ]


def _teacher_point(
    teacher: Sequence[Mapping[str, Any]], place: Spec, told: list[Spec]
) -> list[Spec]:
    name = {**place, "text": {"field": "name"}}
    beside: Spec = {"align": "right", "dx": 6, "dy": -11}
    look: Spec = {"shape": "diamond", "color": OTHER, "size": 100}
    return [
        layer("point", {**place, "tooltip": told}, teacher, **look),
        layer("text", name, teacher, fill=SOFT, **beside),
    ]


def _ann_line(ann: Sequence[Mapping[str, Any]], x: Spec) -> list[Spec]:
    """Return a line at the energy of the ANN of the same shape, whose accuracy is not known."""
    if not ann:
        return []
    name = {"x": x, "text": {"field": "name"}}
    at_foot: Spec = {"align": "right", "dx": -5, "y": {"expr": "height - 8"}}
    return [
        layer("rule", {"x": x}, ann, strokeDash=[2, 3], color=OTHER),
        layer("text", name, ann, fill=SOFT, **at_foot),
    ]
