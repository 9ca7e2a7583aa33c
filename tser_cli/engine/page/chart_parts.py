"""What the charts of a report page are made of: Vega-Lite channels, axes, colours.

Names from outside are data or domains here, never fields or expressions, so that they stay text.
Colours are variables of the page's style sheet: one chart serves light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tser_cli.engine.page.values import Rows

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
    "axisX": {"grid": False, "labelOverlap": True},
    "legend": {
        **{"orient": "top", "title": None, "labelColor": INK, "labelFontSize": 11},
        **{"symbolStrokeWidth": 2, "labelLimit": 260, "columnPadding": 14},
    },
    "text": {"fontSize": 11, "fill": INK},
    "point": {"filled": True, "size": 55, "opacity": 1},
    "line": {"strokeWidth": 2},
    "rule": {"strokeWidth": 1.5},
}
MOST_TICKS = 6
Ticks = tuple[Spec, list[float]]


def chart(description: str, layers: Sequence[Spec], height: int = 240, **more: Any) -> Spec:
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


def layer(kind: str, place: Spec, rows: Rows | None = None, **look: Any) -> Spec:
    """Return marks of a kind; `place` are their channels, `rows` data of their own."""
    own = {} if rows is None else {"data": values(rows)}
    where = {"transform": look.pop("where")} if "where" in look else {}
    return {**own, **where, "mark": {"type": kind, **look}, "encoding": place}


def quantity(name: str, title: str | None = None, **scale: Any) -> Spec:
    """Return a numeric channel; its scale need not begin at 0."""
    return {
        "field": name,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False, **scale},
        "axis": {"tickCount": 5, "format": "~f"},
    }


def spread(name: str, title: str | None, numbers: Sequence[float]) -> Spec:
    """Return a numeric channel that is logarithmic, with room round the numbers.

    Linear where the numbers do not allow it: 0 has no logarithm.
    """
    domain = [min(numbers) / 1.5, max(numbers) * 1.5]
    if not 0.0 < domain[0] <= domain[1] < math.inf:
        found = quantity(name, title, nice=True)
        return {**found, "axis": {"tickCount": 5, "format": "~g"}}
    return {
        "field": name,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "domain": domain, "nice": False},
        "axis": {"values": log_ticks(*domain), "format": ",~g"},
    }


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`: 1, 2, 5, 10 ..., or fewer for a wide range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [round(tick, 12 - decades[0]) for tick in ticks if low <= tick <= high]
        if len(inside) <= MOST_TICKS:
            return inside
    return inside[:: math.ceil(len(inside) / MOST_TICKS)]


def coloured(name: str, domain: Sequence[str], colours: Sequence[str], **more: Any) -> Spec:
    """Return a channel of colours by name."""
    scale = {"domain": list(domain), "range": list(colours)}
    return {"field": name, "type": "nominal", "scale": scale, "sort": None, **more}


def tip(*fields: tuple[str, str, str]) -> list[Spec]:
    """Return what is told where the pointer is: field, title and format of each line.

    A field without a format is text.
    """
    return [
        {"field": field, "title": title, "type": "quantitative", "format": how}
        if how
        else {"field": field, "title": title, "type": "nominal"}
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


def teacher_line(teacher: float | None, y: Spec) -> list[Spec]:
    """Return a dashed line across a chart of accuracies, with its name; nothing without one."""
    if teacher is None:
        return []
    rows = [{"accuracy": 100 * teacher, "name": f"teacher {100 * teacher:.2f} %"}]
    name = {"y": y, "text": {"field": "name"}}
    return [
        layer("rule", {"y": y}, rows, strokeDash=[5, 4], color=OTHER),
        layer("text", name, rows, align="left", dy=-7, x=4, fill=SOFT),
    ]
