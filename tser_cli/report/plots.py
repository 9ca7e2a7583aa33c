"""Figures of one run, from the rows of its tables alone, so that they can be drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tser_cli.base.errors import drawable
from tser_cli.report.csv_files import ALL, TOTAL
from tser_cli.report.statistics import proportion_interval
from tser_cli.report.style import (
    BLUE,
    LABEL_SIZE,
    TEACHER,
    label_points,
    look_of,
    save_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]


def plot_per_timestep(path: Path, rows: Rows, title: str, method: str = "") -> list[Path]:
    """Draw accuracy at each step and averaged, in the colour of the method; return the files.

    `rows` are those of per_timestep.csv. Raises RunError.
    """
    return save_figure(draw_per_timestep(rows, title, method), path)


@styled
def draw_per_timestep(rows: Rows, title: str, method: str = "") -> Figure:
    """Draw accuracy at t, hollow, and averaged over 1..t, with 95 % intervals over the images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.2, 0.6 * len(rows) + 3), 3.2))
    plot = figure.subplots()
    look = look_of(method)
    hollow = {**look.marks, "markerfacecolor": "none", "linestyle": ":"}
    at_t = counted(plot, rows, "correct_at_t", -0.06, hollow)
    averaged = counted(plot, rows, "correct_cumulative", 0.06, look.marks)
    teacher = rows[-1]["teacher_accuracy"]
    if teacher is not None:
        plot.axhline(100 * teacher, color=TEACHER.colour, linestyle="--", linewidth=1)
        plot.annotate(
            f"teacher {100 * teacher:.2f}",
            (0.0, 100 * teacher),
            xycoords=("axes fraction", "data"),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=LABEL_SIZE,
        )
    # room for the teacher's label on the left
    plot.set_xlim(rows[0]["t"] - 0.5 - 0.08 * len(rows), rows[-1]["t"] + 0.3)
    plot.set_xticks([row["t"] for row in rows])
    plot.margins(y=0.2)
    plot.set_xlabel("time step t")
    plot.set_ylabel("accuracy (%)")
    plot.set_title(drawable(title))
    label_points(plot, [at_t, averaged], ["at t", "averaged over 1..t"])
    return figure


def counted(
    plot: Axes, rows: Rows, column: str, aside: float, look: Mapping[str, Any]
) -> tuple[float, float]:
    """Draw the quotients of a column of counts and `images`; return where the last one stands."""
    places = [row["t"] + aside for row in rows]
    heights = [100 * row[column] / row["images"] for row in rows]
    reach = [proportion_interval(row[column], row["images"]) for row in rows]
    below = [height - 100 * low for height, (low, _) in zip(heights, reach, strict=True)]
    above = [100 * high - height for height, (_, high) in zip(heights, reach, strict=True)]
    plot.errorbar(places, heights, yerr=[below, above], linewidth=1, **look)
    return places[-1], heights[-1]


def plot_by_layer(path: Path, rows: Rows, title: str) -> list[Path]:
    """Draw the energy of each layer, stacked by time step; `rows` are those of energy.csv.

    Returns the files. Raises RunError.
    """
    return save_figure(draw_by_layer(rows, title), path)


@styled
def draw_by_layer(rows: Rows, title: str) -> Figure:
    """Draw a bar a layer, from zero, the first time step the darkest part."""
    from matplotlib.figure import Figure

    layers = [row["layer"] for row in rows if row["t"] == ALL and row["layer"] != TOTAL]
    steps = sorted({row["t"] for row in rows if row["t"] != ALL})
    figure = Figure(figsize=(max(5.0, 0.24 * len(layers) + 2), 3.6))
    plot = figure.subplots()
    base = [0.0] * len(layers)
    for rank, step in enumerate(steps):
        of_step = [row for row in rows if row["t"] == step and row["layer"] != TOTAL]
        heights = [row["energy_pj"] / 1e3 for row in of_step]
        strength = 1.0 - 0.7 * rank / max(1, len(steps) - 1)
        plot.bar(layers, heights, bottom=base, color=BLUE, alpha=strength, label=f"t = {step}")
        base = [low + height for low, height in zip(base, heights, strict=True)]
    plot.grid(visible=False, axis="x")
    plot.tick_params(axis="x", rotation=90, labelsize=7, length=0)
    plot.set_ylabel("energy per image (nJ)")
    plot.set_title(drawable(title))
    plot.legend(fontsize=8)
    return figure


def plot_accuracy(
    path: Path,
    points: Sequence[tuple[float, float]],
    teacher: tuple[float, float] | None,
    title: str,
    method: str = "",
) -> list[Path]:
    """Draw accuracy against energy; returns the files. Raises RunError.

    `points` are the energy in pJ of steps 1..t and the accuracy of their average, for t = 1..T;
    `teacher` is the same of the teacher.
    """
    return save_figure(draw_accuracy(points, teacher, title, method), path)


@styled
def draw_accuracy(
    points: Sequence[tuple[float, float]],
    teacher: tuple[float, float] | None,
    title: str,
    method: str = "",
) -> Figure:
    """Draw the student's line through t = 1..T and the teacher's point, in uJ and percent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.4))
    plot = figure.subplots()
    places = [(energy_pj / 1e6, 100 * accuracy) for energy_pj, accuracy in points]
    texts = [f"t = {t}" for t in range(1, len(points) + 1)]
    plot.plot(*zip(*places, strict=True), **look_of(method).marks)
    if teacher is not None:
        places.append((teacher[0] / 1e6, 100 * teacher[1]))
        texts.append("teacher (ANN)")
        plot.plot(*places[-1], marker=TEACHER.marker, color=TEACHER.colour)
    plot.set_xscale("log")
    plot.xaxis.set_major_formatter("{x:g}")
    plot.margins(0.25, 0.25)
    plot.set_xlabel("energy per image (µJ, arithmetic alone)")
    plot.set_ylabel("accuracy (%)")
    plot.set_title(drawable(title))
    label_points(plot, places, texts)
    return figure
