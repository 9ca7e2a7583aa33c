"""The figure of frontier.csv: accuracy against energy, with what does not spike beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tser_cli.csv_words import ALL_STEPS, ANN, ANN_INT8, EARLY_EXIT, TEACHER
from tser_cli.report import style
from tser_cli.report.style import LABEL_SIZE, Place, label_points, styled
from tser_cli.visible import drawable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tser_cli.report.ablation_plots import Cell

# Their accuracy was not measured: they stand as a line at their energy.
LINES = {ANN: "ANN of the same shape", ANN_INT8: "that ANN, 8-bit integers"}
TICKS = (1.0, 2.0, 5.0)  # of a decade


@styled
def draw_frontier(points: pd.DataFrame, cells: Sequence[Cell], axes: Sequence[str]) -> Figure:
    """Draw the cells by themselves, and beside that all of them with the ANN and the teacher.

    `points` are those of frontier.csv, `axes` the varied settings; `cells` give label and look.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8))
    near, far = figure.subplots(1, 2, width_ratios=[1.9, 1.0])
    drawn = [(cell, of_cell(points, cell, axes)) for cell in cells]
    drawn = [(cell, rows) for cell, rows in drawn if (rows["point"] == ALL_STEPS).any()]
    for plot in (near, far):
        for cell, rows in drawn:
            draw_cell(plot, rows, cell, intervals=plot is near)
    figure.supxlabel("energy per image (µJ, arithmetic alone)", fontsize="medium")
    near.set_ylabel("accuracy (%)")
    near.margins(0.1, 0.08)
    exits = bool((points["point"] == EARLY_EXIT).any())
    near.set_title(
        "first step alone (hollow), early exit (line), all steps (filled)" if exits else ""
    )
    ends = [place_of(rows[rows["point"] == ALL_STEPS].iloc[0]) for _, rows in drawn]
    names = [drawable(cell.label) for cell, _ in drawn]
    label_points(near, ends, names, [cell.look.colour for cell, _ in drawn])
    draw_others(far, points)
    return figure


def of_cell(points: pd.DataFrame, cell: Cell, axes: Sequence[str]) -> pd.DataFrame:
    """Return the points of one cell."""
    return points[(points[list(axes)] == list(cell.key)).all(axis=1)]


def place_of(point: pd.Series) -> Place:
    """Return where a point stands, in uJ and percent."""
    return point["energy_pj"] / 1e6, 100 * point["accuracy"]


def draw_cell(plot: Axes, rows: pd.DataFrame, cell: Cell, intervals: bool) -> None:
    """Draw a cell's mean, and its curve of early exit from the first step alone."""
    curve, ends = (rows[rows["point"] == kind] for kind in (EARLY_EXIT, ALL_STEPS))
    if len(curve):
        plot.plot(curve["energy_pj"] / 1e6, 100 * curve["accuracy"], color=cell.look.colour)
        draw_point(plot, curve.iloc[0], cell, intervals, hollow=True)
    draw_point(plot, ends.iloc[0], cell, intervals)


def draw_point(
    plot: Axes, point: pd.Series, cell: Cell, intervals: bool, hollow: bool = False
) -> None:
    """Draw a mean, with its intervals in both directions where there are any."""
    across, up = None, None
    if intervals and not math.isnan(point["accuracy_low"]):
        across = reach(point, "energy_pj", "energy_low_pj", "energy_high_pj", 1e-6)
        up = reach(point, "accuracy", "accuracy_low", "accuracy_high", 100.0)
    look = {**cell.look.marks, **({"markerfacecolor": "none"} if hollow else {})}
    size = 6 if intervals else 4
    plot.errorbar(*place_of(point), xerr=across, yerr=up, markersize=size, elinewidth=1, **look)


def reach(point: pd.Series, name: str, low: str, high: str, scale: float) -> list[list[float]]:
    """Return how far an interval reaches below and above its mean, as matplotlib takes it."""
    return [[scale * (point[name] - point[low])], [scale * (point[high] - point[name])]]


def draw_others(plot: Axes, points: pd.DataFrame) -> None:
    """Draw the teacher, and a line at each energy whose accuracy nobody measured."""
    from matplotlib.ticker import LogLocator, NullLocator

    plot.set_xscale("log")
    plot.xaxis.set_major_locator(LogLocator(subs=TICKS))
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_major_formatter("{x:g}")
    taught = points[points["point"] == TEACHER].drop_duplicates(["energy_pj", "accuracy"])
    places = [place_of(point) for _, point in taught.iterrows()]
    for place in places:
        plot.plot(*place, marker=style.TEACHER.marker, color=style.TEACHER.colour)
        plot.annotate("teacher", place, (4, 6), textcoords="offset points", ha="right")
    for point, text in LINES.items():
        for energy in points.loc[points["point"] == point, "energy_pj"].unique():
            draw_line(plot, energy / 1e6, text)
    plot.margins(0.12, 0.12)
    plot.set_title("beside what does not spike")


def draw_line(plot: Axes, energy: float, text: str) -> None:
    """Draw a line at an energy, in uJ, and its name along it."""
    plot.axvline(energy, color=style.GREY, linestyle=":", linewidth=1)
    plot.annotate(
        text,
        (energy, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-2, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        fontsize=LABEL_SIZE,
    )
