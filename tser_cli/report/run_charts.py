"""The charts of one run: accuracy, training, and what was taken for what."""

from __future__ import annotations

from tser_cli.report.chart_parts import (
    BAD,
    CARD,
    FAINT,
    INK,
    STUDENT,
    Spec,
    chart,
    coloured,
    quantity,
    steps_axis,
    teacher_line,
    tip,
    values,
)
from tser_cli.report.page_values import Accuracy, Curves, Mistakes

DENSE = 30  # marks above which a line has small points
SHADES = 6  # of a colour in the matrix
LABELLED = 15  # classes above which the matrix has no numbers


def accuracy(found: Accuracy) -> Spec:
    """Accuracy at each t alone and of all steps so far, with intervals; the teacher as a line."""
    names = {"at_t": "step t alone", "cumulative": "steps 1 to t together"}
    aside = {"at_t": -0.05, "cumulative": 0.05}
    rows = [
        {
            "x": row["t"] + aside[what] * (len(found.rows) > 1),
            "t": row["t"],
            "series": name,
            "accuracy": 100 * row[f"accuracy_{what}"],
            "low": 100 * row[f"low_{what}"],
            "high": 100 * row[f"high_{what}"],
            "right": row[f"correct_{what}"],
        }
        for what, name in names.items()
        for row in found.rows
    ]
    x = steps_axis([int(row["t"]) for row in found.rows])
    colour = coloured("series", tuple(names.values()), (FAINT, STUDENT))
    told = tip(
        ("series", "", ""),
        ("t", "t", "d"),
        ("accuracy", "accuracy %", ".2f"),
        ("low", "95 % from", ".2f"),
        ("high", "to", ".2f"),
        ("right", "images right", ",d"),
    )
    y = quantity("accuracy", "accuracy (%)", nice=True)
    layers = [
        *teacher_line(found.teacher),
        {
            "mark": "rule",
            "encoding": {"x": x, "y": quantity("low"), "y2": {"field": "high"}, "color": colour},
        },
        {"mark": "line", "encoding": {"x": x, "y": y, "color": colour}},
        {
            "mark": {"type": "point", "size": 70},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": told},
        },
    ]
    return chart("Accuracy at each time step", layers, 270, data=values(rows))


def term(found: Curves, column: str) -> Spec | None:
    """One column of metrics.csv over the epochs; None where it holds no numbers."""
    rows = [{"epoch": r["epoch"], "value": r[column]} for r in found.rows if r[column] is not None]
    if not rows:
        return None
    numbers = [row["value"] for row in rows]
    wide = min(numbers) > 0 and max(numbers) > 30 * min(numbers)
    y = quantity("value", None, **({"type": "log"} if wide else {}))
    y["axis"] = {"tickCount": 4, "format": "~g"}
    told = tip(("epoch", "epoch", "d"), ("value", column, ".4~g"))
    return chart(f"{column} over the epochs", _curve(y, told, len(rows)), 120, data=values(rows))


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
    y = {**quantity("value", None), "axis": {"tickCount": 4, "format": "~g"}}
    present = list(dict.fromkeys(row["series"] for row in rows))
    colour = coloured("series", present, (STUDENT, BAD)[: len(present)])
    if len(present) == 1:
        colour["legend"] = None
    told = tip(("series", "", ""), ("epoch", "epoch", "d"), ("value", "accuracy %", ".2f"))
    layers = [
        {**layer, "encoding": {**layer["encoding"], "color": colour}}
        for layer in _curve(y, told, len(found.rows))
    ]
    return chart("Accuracy over the epochs", layers, 120, data=values(rows))


def _curve(y: Spec, told: list[Spec], count: int) -> list[Spec]:
    x = {
        **quantity("epoch", "epoch", nice=False),
        "axis": {"tickMinStep": 1, "format": "d", "tickCount": 6},
    }
    size = 40 if count <= DENSE else 12
    encoding = {"x": x, "y": y}
    return [
        {"mark": {"type": "line", "color": STUDENT}, "encoding": encoding},
        {
            "mark": {"type": "point", "size": size, "color": STUDENT},
            "encoding": {**encoding, "tooltip": told},
        },
    ]


def confusion(found: Mistakes) -> Spec | None:
    """Images by true and predicted class: right ones blue, wrong ones red, by the class's share."""
    if found.confusion_KK is None:
        return None
    rows = []
    for true, taken_K in zip(found.classes, found.confusion_KK, strict=True):
        images = sum(taken_K) or 1
        for predicted, count in zip(found.classes, taken_K, strict=True):
            share, kind = count / images, "right" if predicted == true else "wrong"
            level = (
                0
                if not count
                else 1
                + min(SHADES - 2, int(share * (SHADES - 1) / (1 if kind == "right" else 0.3)))
            )
            rows.append(
                {
                    "true": true,
                    "predicted": predicted,
                    "images": count,
                    "share": 100 * share,
                    "shade": f"{kind}{level}",
                    "strong": level >= SHADES - 2,
                }
            )
    axis = {
        "labelAngle": -40 if max(map(len, found.classes)) > 2 else 0,
        "labelLimit": 90,
        "orient": "top",
    }
    x = {"field": "predicted", "type": "nominal", "sort": None, "title": "predicted", "axis": axis}
    y = {
        "field": "true",
        "type": "nominal",
        "sort": None,
        "title": "true class",
        "axis": {"labelLimit": 90},
    }
    place = {"x": x, "y": y}
    kinds = [f"{kind}{level}" for kind in ("right", "wrong") for level in range(SHADES)]
    fill = coloured("shade", kinds, _shades(), legend=None)
    told = tip(
        ("true", "true", ""),
        ("predicted", "predicted", ""),
        ("images", "images", ",d"),
        ("share", "% of the class", ".1f"),
    )
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "stroke": CARD, "strokeWidth": 1},
            "encoding": {**place, "color": fill, "tooltip": told},
        }
    ]
    if len(found.classes) <= 15:
        ink = {"condition": {"test": "datum.strong", "value": CARD}, "value": INK}
        layers.append(
            {
                "transform": [{"filter": "datum.images > 0"}],
                "mark": {"type": "text", "fontSize": 10},
                "encoding": {**place, "text": {"field": "images"}, "fill": ink},
            }
        )
    height = {"step": max(14, min(30, 420 // len(found.classes)))}
    return chart("Confusion matrix", layers, height, data=values(rows))


def _shades() -> list[str]:
    shares = (4, 25, 45, 65, 82, 100)
    return [
        f"color-mix(in oklab, {colour} {share if n or colour == BAD else 4}%, var(--card))"
        for colour in (STUDENT, BAD)
        for n, share in enumerate(shares)
    ]
