"""What the charts of a report page are made of: Vega-Lite channels, axes, colours.

Names from outside are data or domains here, never fields or expressions, so that they stay text.
Colours are variables of the page's style sheet: one chart serves light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tser_cli.report.page_values import Rows

Spec = dict[str, Any]
INK, SOFT, LINE, CARD = "var(--ink)", "var(--soft)", "var(--line)", "var(--card)"
STUDENT, OTHER, FAINT, BAD = "var(--s1)", "var(--soft)", "var(--s6)", "var(--s2)"
SERIES = tuple(f"var(--s{n})" for n in range(1, 7))
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'
CONFIG: Spec = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        **{"labelColor": SOFT, "titleColor": SOFT, "gridColor": LINE, "domainColor": LINE},
        **{"tickColor": LINE, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": 400},
        **{"titlePadding": 8, "labelPadding": 5, "labelLimit": 130},
    },
    "axisY": {"domain": False, "ticks": False},
    "axisX": {"grid": False},
    "legend": {
        **{"orient": "top", "title": None, "labelColor": INK, "labelFontSize": 11},
        **{"symbolStrokeWidth": 2, "labelLimit": 260, "columnPadding": 14},
    },
    "text": {"fontSize": 11, "fill": INK},
    "point": {"filled": True, "size": 55, "opacity": 1},
    "line": {"strokeWidth": 2},
    "rule": {"strokeWidth": 1.5},
}
SHADES = 6  # of a colour in the matrix
DENSE = 30  # marks above which a line has no points


def chart(description: str, layers: Sequence[Spec], height: Any = 240, **more: Any) -> Spec:
    """Return a chart as wide as its place; `description` is what a screen reader says."""
    return {
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": list(layers),
        **more,
    }


def values(rows: Rows) -> Spec:
    """Return rows as the data of a chart or a layer."""
    return {"values": [dict(row) for row in rows]}


def quantity(name: str, title: str | None = None, **scale: Any) -> Spec:
    """Return a numeric channel, whose scale need not begin at 0; a logarithmic one can't."""
    usual = {} if scale.get("type") == "log" else {"zero": False}
    return {
        "field": name,
        "type": "quantitative",
        "title": title,
        "scale": {**usual, **scale},
    }


def coloured(name: str, domain: Sequence[str], colours: Sequence[str], **more: Any) -> Spec:
    """Return a channel of colours by name."""
    scale = {"domain": list(domain), "range": list(colours)}
    return {"field": name, "type": "nominal", "scale": scale, "sort": None, **more}


def tip(*fields: tuple[str, str, str]) -> list[Spec]:
    """Return what is told where the pointer is: field, title and format of each line."""
    kinds = {"": "nominal"}
    return [
        {
            "field": field,
            "title": title,
            "type": kinds.get(how, "quantitative"),
            **({"format": how} if how else {}),
        }
        for field, title, how in fields
    ]


def steps_axis(steps: Sequence[int], title: str = "time step t") -> Spec:
    """Return the x axis of time steps, with room on both sides."""
    shown = [t for t in steps if len(steps) <= 16 or t in (steps[0], steps[-1]) or t % 8 == 0]
    channel = quantity("x", title, domain=[steps[0] - 0.5, steps[-1] + 0.5], nice=False)
    return {**channel, "axis": {"values": shown, "format": "d", "grid": False}}


def ramp(count: int) -> list[str]:
    """Return a colour for each of `count` time steps, the first one strongest."""
    shares = [100 - 70 * n / max(1, count - 1) for n in range(count)]
    return [f"color-mix(in oklab, var(--s1) {share:.0f}%, var(--card))" for share in shares]


def teacher_line(teacher: float | None) -> list[Spec]:
    """Return a dashed line across a chart of accuracies, with its name; nothing without one."""
    if teacher is None:
        return []
    data = values([{"accuracy": 100 * teacher, "name": f"teacher {100 * teacher:.2f} %"}])
    y = quantity("accuracy", "accuracy (%)")
    mark = {"type": "text", "align": "left", "dy": -7, "x": 4, "fill": SOFT}
    return [
        {
            "data": data,
            "mark": {"type": "rule", "strokeDash": [5, 4], "color": OTHER},
            "encoding": {"y": y},
        },
        {"data": data, "mark": mark, "encoding": {"y": y, "text": {"field": "name"}}},
    ]
