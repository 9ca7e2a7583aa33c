"""The charts of several runs in one, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from tser_cli.engine.page.chart_parts import (
    SERIES,
    Spec,
    chart,
    coloured,
    layer,
    quantity,
    spread,
    steps_axis,
    tip,
    values,
)
from tser_cli.engine.page.run_charts import ACCURACY, WIDE, curve
from tser_cli.engine.page.values import Accuracy, Curves, Tradeoff
from tser_cli.settings.fields import unit_of

RUN = ("run", "run", "")


def colours_of(count: int) -> list[str]:
    """Return a colour for each of `count` lines; they repeat beyond six."""
    return [SERIES[n % len(SERIES)] for n in range(count)]


def accuracies(named: Sequence[tuple[str, Accuracy]]) -> Spec:
    """Accuracy of the steps up to t, a line a run."""
    rows = [
        {
            **{"x": row["t"] + 0.04 * place, "t": row["t"], "run": name},
            "accuracy": 100 * row["accuracy_cumulative"],
            "low": 100 * row["low_cumulative"],
            "high": 100 * row["high_cumulative"],
        }
        for place, (name, found) in enumerate(named)
        for row in found.rows
    ]
    x = steps_axis(sorted({row["t"] for row in rows}))
    y = quantity("accuracy", ACCURACY, nice=True)
    colour = _runs(named)
    told = tip(RUN, ("t", "t", "d"), ("accuracy", "accuracy %", ".2f"))
    reach = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    place = {"x": x, "y": y, "color": colour}
    layers = [
        layer("rule", reach, strokeWidth=1),
        layer("line", place),
        layer("point", {**place, "tooltip": told}),
    ]
    return chart("Accuracy of each run at each time step", layers, 260, data=values(rows))


def tradeoffs(named: Sequence[tuple[str, Tradeoff]]) -> Spec:
    """Accuracy against energy, a point a time step, a colour a run."""
    scale, unit = unit_of(max(found.steps[-1]["energy_pj"] for _, found in named))
    rows = [
        {
            **{"run": name, "t": row["t"], "accuracy": 100 * row["accuracy"]},
            "energy": row["energy_pj"] / scale,
        }
        for name, found in named
        for row in found.steps
    ]
    energies = [row["energy"] for row in rows]
    place = {
        "x": spread("energy", f"energy an image ({unit}, arithmetic alone)", energies),
        "y": quantity("accuracy", ACCURACY, nice=True),
        "color": _runs(named),
    }
    energy = ("energy", f"energy {unit}", ".4~g")
    told = tip(RUN, ("t", "t", "d"), energy, ("accuracy", "accuracy %", ".2f"))
    layers = [
        layer("line", {**place, "order": {"field": "t"}}),
        layer("point", {**place, "tooltip": told}, size=80),
        layer("text", {**place, "text": {"field": "t"}}, dx=8, dy=-8, align="left"),
    ]
    return chart("Accuracy of each run against its energy", layers, 260, data=values(rows))


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
    wide = min(numbers) > 0 and max(numbers) > WIDE * min(numbers)
    y = spread("loss", "loss", numbers) if wide else quantity("loss", "loss")
    told = tip(RUN, ("epoch", "epoch", "d"), ("loss", "loss", ".4~g"))
    layers = curve(y, told, len(rows) // len(named), _runs(named))
    return chart("Loss of each run over the epochs", layers, 200, data=values(rows))


def _runs(named: Sequence[tuple[str, object]]) -> Spec:
    return coloured("run", [name for name, _ in named], colours_of(len(named)))
