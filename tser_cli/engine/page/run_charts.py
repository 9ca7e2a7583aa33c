"""The charts of one run: accuracy, training, and what was taken for what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tser_cli.engine.page.chart_parts import (
    BAD,
    CARD,
    FAINT,
    INK,
    STUDENT,
    Spec,
    chart,
    coloured,
    layer,
    quantity,
    spread,
    steps_axis,
    teacher_line,
    tip,
    values,
)
from tser_cli.engine.page.values import Accuracy, Curves, Mistakes

DENSE = 30  # marks above which a line has small points
LABELLED = 15  # classes above which the matrix has no numbers
WIDE = 30  # a term that falls so many times is drawn on a logarithmic scale
SHARES = (25, 45, 65, 82, 100)  # percent of colour in the matrix
WORST = 0.3  # share of a class that, taken for one other, is drawn in the deepest colour
ACCURACY = "accuracy (%)"
SERIES_OF = {"at_t": "step t alone", "cumulative": "steps 1 to t together"}


def accuracy(found: Accuracy) -> Spec:
    """Accuracy at each t alone and of all steps so far, with intervals; the teacher as a line."""
    rows = [_accuracy_row(row, what, len(found.rows)) for what in SERIES_OF for row in found.rows]
    x = steps_axis([int(row["t"]) for row in found.rows])
    y, low = quantity("accuracy", ACCURACY, nice=True), quantity("low", ACCURACY, nice=True)
    colour = coloured("series", tuple(SERIES_OF.values()), (FAINT, STUDENT))
    told = tip(
        ("series", "", ""),
        ("t", "t", "d"),
        ("accuracy", "accuracy %", ".2f"),
        ("low", "95 % from", ".2f"),
        ("high", "to", ".2f"),
        ("right", "images right", ",d"),
    )
    reach = {"x": x, "y": low, "y2": {"field": "high"}, "color": colour}
    layers = [
        *teacher_line(found.teacher, y),
        layer("rule", reach, strokeWidth=1),
        layer("line", {"x": x, "y": y, "color": colour}),
        layer("point", {"x": x, "y": y, "color": colour, "tooltip": told}, size=70),
    ]
    return chart("Accuracy at each time step", layers, 260, data=values(rows))


def _accuracy_row(row: Mapping[str, Any], what: str, steps: int) -> dict[str, Any]:
    aside = {"at_t": -0.012, "cumulative": 0.012}[what] * steps  # side by side at any width
    return {
        "x": row["t"] + aside,
        "t": row["t"],
        "series": SERIES_OF[what],
        "accuracy": 100 * row[f"accuracy_{what}"],
        "low": 100 * row[f"low_{what}"],
        "high": 100 * row[f"high_{what}"],
        "right": row[f"correct_{what}"],
    }


def term(found: Curves, column: str) -> Spec | None:
    """One column of metrics.csv over the epochs; None where it holds no numbers."""
    rows = [
        {"epoch": row["epoch"], "value": row[column]}
        for row in found.rows
        if row.get(column) is not None
    ]
    if not rows:
        return None
    numbers = [row["value"] for row in rows]
    wide = column != "lr" and min(numbers) > 0 and max(numbers) > WIDE * min(numbers)
    plain = {**quantity("value"), "axis": {"tickCount": 4, "format": "~g"}}
    y = spread("value", None, numbers) if wide else plain
    told = tip(("epoch", "epoch", "d"), ("value", column, ".4~g"))
    return chart(f"{column} over the epochs", curve(y, told, len(rows)), 120, data=values(rows))


def accuracies(found: Curves) -> Spec | None:
    """Accuracy on training and on held-out images over the epochs; None without any."""
    names = {"train_accuracy": "training", "validation_accuracy": "held out"}
    rows = [
        {"epoch": row["epoch"], "value": 100 * row[column], "series": name}
        for column, name in names.items()
        for row in found.rows
        if row.get(column) is not None
    ]
    if not rows:
        return None
    present = list(dict.fromkeys(row["series"] for row in rows))
    legend = {} if len(present) > 1 else {"legend": None}
    colour = coloured("series", present, (STUDENT, BAD)[: len(present)], **legend)
    told = tip(("series", "", ""), ("epoch", "epoch", "d"), ("value", "accuracy %", ".2f"))
    layers = curve(quantity("value"), told, len(found.rows), colour)
    return chart("Accuracy over the epochs", layers, 120, data=values(rows))


def curve(y: Spec, told: list[Spec], count: int, colour: Spec | None = None) -> list[Spec]:
    """Return a line over the epochs, with points."""
    x = quantity("epoch", "epoch", nice=False)
    x["axis"] = {"tickMinStep": 1, "format": "d", "tickCount": 6, "grid": False}
    place = {"x": x, "y": y, "color": colour or {"value": STUDENT}}
    size = 40 if count <= DENSE else 12
    return [layer("line", place), layer("point", {**place, "tooltip": told}, size=size)]


def confusion(found: Mistakes) -> Spec | None:
    """Images by true and predicted class: right ones blue, wrong ones orange, by their share.

    None where there are too many classes.
    """
    if found.confusion_KK is None:
        return None
    rows = list(_cells(found))
    labels = {"labelAngle": -40 if max(map(len, found.classes)) > 2 else 0, "labelLimit": 90}
    place = {
        "x": _classes("predicted", "predicted", {**labels, "orient": "top"}),
        "y": _classes("true", "true class", {"labelLimit": 90}),
    }
    kinds = ["none", *(f"{kind}{n}" for kind in ("right", "wrong") for n in range(len(SHARES)))]
    fill = coloured("shade", kinds, ["var(--wash)", *_shades(STUDENT), *_shades(BAD)], legend=None)
    told = tip(
        ("true", "true", ""),
        ("predicted", "predicted", ""),
        ("images", "images", ",d"),
        ("share", "% of the class", ".1f"),
    )
    layers = [layer("rect", {**place, "color": fill, "tooltip": told}, stroke=CARD, strokeWidth=1)]
    if len(found.classes) <= LABELLED:
        ink = {"condition": {"test": "datum.strong", "value": CARD}, "value": INK}
        text = {**place, "text": {"field": "images"}, "fill": ink}
        layers.append(layer("text", text, where=[{"filter": "datum.images > 0"}], fontSize=10))
    side = max(14, min(30, 420 // len(found.classes)))
    return chart("Confusion matrix", layers, side * len(found.classes), data=values(rows))


def _classes(name: str, title: str, axis: Spec) -> Spec:
    every = {**axis, "labelOverlap": False}
    return {"field": name, "type": "nominal", "sort": None, "title": title, "axis": every}


def _cells(found: Mistakes) -> Iterator[dict[str, Any]]:
    assert found.confusion_KK is not None, "few enough classes"
    for k, taken_K in enumerate(found.confusion_KK):
        images = sum(taken_K) or 1
        for taken, count in enumerate(taken_K):
            true, predicted, right = found.classes[k], found.classes[taken], k == taken
            share = count / images
            part = min(1.0, share if right else share / WORST)
            level = min(len(SHARES) - 1, int(part * len(SHARES)))
            shade = f"{'right' if right else 'wrong'}{level}"
            yield {
                **{"true": true, "predicted": predicted, "images": count, "share": 100 * share},
                **{"shade": shade if count else "none", "strong": bool(count) and level >= 3},
            }


def _shades(colour: str) -> list[str]:
    return [f"color-mix(in oklab, {colour} {share}%, var(--card))" for share in SHARES]
