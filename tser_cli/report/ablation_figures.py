"""Figures of an ablation, from its CSVs alone, so that they can be drawn again.

A cell is a row or a point: every seed faint, the mean with its 95 % interval by Student's t.

The figure of frontier.csv: accuracy against energy, with what does not spike beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tser_cli.base.errors import drawable
from tser_cli.report import csv_files, figures, style
from tser_cli.report.statistics import interval
from tser_cli.report.style import PALETTE, Drawing, Look, label_points, look_of, styled
from tser_cli.settings.fields import unit_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


Names = Mapping[str, str]
Points = list[float]
METHOD = "method.name"
AT_T, CUMULATIVE = "accuracy_at_", "accuracy_cumulative_"
PANELS_A_LINE = 4
FEWEST_STEPS = 3  # of a curve over the steps: with two, the panels of each step show all
MOST_CLASSES = 20  # more can't be labelled


@dataclass(frozen=True)
class CellRuns:
    """The finished runs of one cell, by seed; `key` holds its varied settings as texts."""

    key: tuple[str, ...]
    label: str
    look: Look
    runs: pd.DataFrame

    def percent(self, column: str) -> list[float]:
        """Return the values of a column in percent, without empty ones."""
        return [100 * float(value) for value in self.runs[column].dropna()]

    @property
    def energies_pj(self) -> list[float]:
        """Return what an image costs in each run."""
        return [float(value) for value in self.runs["energy_pj"].dropna()]


def draw_all(folder: Path, names: Names) -> list[Path]:
    """Draw what the tables in `folder` allow, into its figures/; return the files.

    `names` are the short names of the varied settings, by their columns. Raises RunError.
    """
    runs = csv_files.read_ablation(folder / "ablation.csv", list(names))
    summary = csv_files.read_summary(folder / "summary.csv")
    drawn = draw_tables(runs, summary, names)
    points = folder / "tsne.csv"
    if drawn and points.is_file():
        drawn["tsne"] = draw_tsne(csv_files.read_table(points, csv_files.TSNE))
    exits = folder / "frontier.csv"
    if drawn and exits.is_file():
        table = csv_files.read_table(exits, csv_files.FRONTIER, others=csv_files.TEXT)
        drawn["frontier"] = draw_frontier(table, cells_of(runs, names), list(names))
    return [path for name in drawn for path in drawn[name].save(folder / "figures" / name)]


def draw_tables(runs: pd.DataFrame, summary: pd.DataFrame, names: Names) -> dict[str, Drawing]:
    """Return the figures of ablation.csv and summary.csv by name; none where nothing finished."""
    cells = cells_of(runs, names)
    if not cells:
        return {}
    axis, measure = ", ".join(names.values()), str(summary["measure"].iloc[0])
    drawn = {
        "per_timestep": draw_per_timestep(cells, axis),
        "accuracy": draw_differences(cells, axis, measure, baseline_of(summary)),
    }
    if steps_of(cells) >= FEWEST_STEPS:
        drawn["averaged"] = draw_averaged(cells)
    counted = [cell for cell in cells if cell.energies_pj and cell.percent("accuracy")]
    return {**drawn, "energy": draw_energy(counted)} if counted else drawn


def cells_of(runs: pd.DataFrame, names: Names) -> list[CellRuns]:
    """Return the cells that have a finished run, in the table's order.

    A cell of one varied setting is called by its value, `kd`; else `method=kd, timesteps=2`.
    """
    # by seed, so that differences pair the runs of equal seeds
    finished = runs[runs["state"] == "finished"].set_index("seed")
    cells = []
    # in the order of the table, which is the one in which the values were named
    for key, members in finished.groupby(list(names), sort=False):
        values = tuple(map(str, key))
        named = dict(zip(names, values, strict=True))
        several = ", ".join(f"{names[axis]}={value}" for axis, value in named.items())
        look = look_of(named[METHOD]) if METHOD in named else Look()
        cells.append(CellRuns(values, several if len(named) > 1 else values[0], look, members))
    return cells


def steps_of(cells: Sequence[CellRuns]) -> int:
    """Return the largest T of the cells."""
    return sum(str(name).startswith(AT_T) for name in cells[0].runs)


def baseline_of(summary: pd.DataFrame) -> dict[int, str]:
    """Return the settings that all baselines of summary.csv share, by their place in a cell's key.

    Every other cell is compared with the one that has these and is like it in the rest.
    """
    bases = summary[summary["baseline"] == 1]
    return {
        place: str(bases[axis].iloc[0])
        for place, axis in enumerate(csv_files.axes_of(summary))
        # a baseline may name some of the settings alone: in the others baselines differ
        if bases[axis].nunique() == 1
    }


def differences(
    cells: Sequence[CellRuns], measure: str, baseline: Mapping[int, str]
) -> list[Points]:
    """Return each cell's differences to its baseline, a seed a number, in points of percent.

    Empty for a baseline itself, and for a cell whose baseline has no finished run.
    """
    by_key = {cell.key: cell for cell in cells}
    found: list[Points] = []
    for cell in cells:
        base = by_key.get(tuple(baseline.get(n, value) for n, value in enumerate(cell.key)))
        if base is None or base is cell:
            found.append([])
        else:
            # pandas pairs by the index, the seed; one that either side lacks becomes NaN
            paired = (cell.runs[measure] - base.runs[measure]).dropna()
            found.append([100 * float(value) for value in paired])
    return found


@styled
def draw_per_timestep(cells: Sequence[CellRuns], axis: str) -> Drawing:
    """Draw accuracy at each t and of the average, a panel each, a line a cell (paper's Fig. 2)."""
    steps = steps_of(cells)
    panels = {f"at t = {t}": f"{AT_T}{t}" for t in range(1, steps + 1)}
    panels["averaged over time"] = "accuracy"
    drawing, plots = lines_of_cells(cells, len(panels), axis)
    for plot, (title, column) in zip(plots, panels.items(), strict=True):
        draw_cells(drawing, plot, cells, [cell.percent(column) for cell in cells], "%")
        plot.set_title(title)
        plot.set_xlabel(figures.ACCURACY)
    low = min(plot.get_xlim()[0] for plot in plots)
    high = max(plot.get_xlim()[1] for plot in plots)
    for plot in plots:  # one scale, so that the steps can be compared
        plot.set_xlim(low, high)
    # as text, so that teachers which differ by rounding are named once
    taught = {f"{value:.2f}" for cell in cells for value in cell.percent("teacher_accuracy")}
    text = f"teacher: {', '.join(sorted(taught))} %" if taught else ""
    drawing.figure.supxlabel(text, fontsize=style.LABEL_SIZE)
    return drawing


@styled
def draw_averaged(cells: Sequence[CellRuns]) -> Drawing:
    """Draw accuracy against the steps 1..T' that are averaged, alone and of each cell a line.

    One training gives every latency. Left: single steps; right: their averages up to T'.
    """
    steps = range(1, 1 + steps_of(cells))
    drawing, plots = grid(2, (figures.WIDTH / 2, 3.4), sharey=True)
    names = {"step t alone": (AT_T, "t"), "mean of steps 1 to T'": (CUMULATIVE, "T'")}
    for plot, (title, (column, axis)) in zip(plots, names.items(), strict=True):
        for place, cell in enumerate(cells):
            # beside each other, so that no interval hides another
            aside = 0.06 * (place - (len(cells) - 1) / 2)
            found = [cell.percent(f"{column}{t}") for t in steps]
            known = [(t, values) for t, values in zip(steps, found, strict=True) if values]
            heights = [mean(values) for _, values in known]
            places = [t + aside for t, _ in known]
            for (t, values), height in zip(known, heights, strict=True):
                plot.errorbar(t + aside, height, yerr=reach_of(values), **cell.look.marks)
            (line,) = plot.plot(places, heights, label=drawable(cell.label), **cell.look.marks)
            texts = [
                f"{cell.label}, {axis} = {t}: {height:.2f} %, n = {len(values)}"
                for (t, values), height in zip(known, heights, strict=True)
            ]
            drawing.tell(line, texts)
        plot.set_title(title)
        plot.set_xlabel(axis)
        plot.set_xticks(list(steps))
    plots[0].set_ylabel(figures.ACCURACY)
    plots[1].legend(loc="lower right", frameon=False)
    return drawing


@styled
def draw_differences(
    cells: Sequence[CellRuns], axis: str, measure: str, baseline: Mapping[int, str]
) -> Drawing:
    """Draw `measure` of each cell, and beside it the paired differences to its baseline."""
    drawing, (left, right) = lines_of_cells(cells, 2, axis)
    draw_cells(drawing, left, cells, [cell.percent(measure) for cell in cells], "%")
    left.set_xlabel(f"{measure.replace('_', ' ')} (%)")
    paired = differences(cells, measure, baseline)
    draw_cells(drawing, right, cells, paired, "points")
    right.axvline(0.0, color=style.PALE, linewidth=1)
    for line, (cell, values) in enumerate(zip(cells, paired, strict=True)):
        if not values:
            is_base = all(cell.key[place] == value for place, value in baseline.items())
            text = "baseline" if is_base else "no pairs"
            right.annotate(text, (0.0, line), (4, 0), textcoords="offset points", va="center")
    right.set_xlabel("to the baseline (points)")
    right.set_title("paired by seed")
    return drawing


@styled
def draw_energy(cells: Sequence[CellRuns]) -> Drawing:
    """Draw accuracy against energy: a cell's mean with both intervals, every run faint."""
    drawing, plot = style.blank(figures.WIDTH, 3.6)
    scale, unit = unit_of(max(energy for cell in cells for energy in cell.energies_pj))
    middles = []
    for cell in cells:
        spent = [energy / scale for energy in cell.energies_pj]
        heights = cell.percent("accuracy")
        plot.plot(spent, heights, **cell.look.faint)
        middle = (mean(spent), mean(heights))
        across, up = reach_of(spent), reach_of(heights)
        bars = plot.errorbar(*middle, xerr=across, yerr=up, elinewidth=1, **cell.look.marks)
        text = f"{cell.label}: {middle[0]:.4g} {unit}, {middle[1]:.2f} %, n = {len(heights)}"
        drawing.tell(bars[0], [text])
        middles.append(middle)
    plot.margins(0.12)
    plot.set_xlabel(f"energy an image ({unit}, arithmetic alone)")
    plot.set_ylabel(figures.ACCURACY)
    colours = [cell.look.colour for cell in cells]
    label_points(plot, middles, [drawable(cell.label) for cell in cells], colours)
    return drawing


@styled
def draw_tsne(points: pd.DataFrame) -> Drawing:
    """Draw t-SNE of the penultimate features, a panel a network (paper's Fig. 5).

    The number of each class stands at the median of its points.
    """
    names = list(dict.fromkeys(points["network"]))
    drawing, panels = grid(len(names), (2.5, 2.6))
    labelled = points["label"].nunique() <= MOST_CLASSES
    for panel, name in zip(panels, names, strict=True):
        for label, members in points[points["network"] == name].groupby("label"):
            colour = PALETTE[int(str(label)) % len(PALETTE)]
            panel.scatter(members["x"], members["y"], s=4, color=colour, alpha=0.6, linewidths=0)
            # the median: a point far away does not draw the number off its class
            middle = (float(members["x"].median()), float(members["y"].median()))
            if labelled:
                panel.annotate(str(label), middle, ha="center", va="center", weight="bold")
        panel.set_title(drawable(name))
        # t-SNE keeps neighbours, not distances: numbers on its axes would mean nothing
        panel.set_xticks([])
        panel.set_yticks([])
    return drawing


def lines_of_cells(cells: Sequence[CellRuns], panels: int, axis: str) -> tuple[Drawing, list[Axes]]:
    """Return a drawing of panels side by side in which each cell has a line, named at the left."""
    columns = min(PANELS_A_LINE, panels)
    names = [drawable(cell.label) for cell in cells]
    widest = max(map(len, names))
    # names of cells may be long: some 0.07 inch a letter
    size = (2.2 + (0.07 * widest + 0.6) / columns, 0.3 * len(cells) + 1.0)
    drawing, plots = grid(panels, size, sharey=True)
    plots[0].set_yticks(range(len(cells)), names)
    plots[0].set_ylim(len(cells) - 0.5, -0.5)
    for plot in plots:
        plot.grid(visible=False, axis="y")
        plot.tick_params(axis="y", length=0)
        plot.locator_params(axis="x", nbins=5)
    for plot in plots[::columns]:
        plot.set_ylabel(axis)
    return drawing, plots


def grid(
    panels: int, size: tuple[float, float], sharey: bool = False
) -> tuple[Drawing, list[Axes]]:
    """Return a drawing of `panels` panels of `size` inches each, at most four in a line."""
    columns = min(PANELS_A_LINE, panels)
    lines = math.ceil(panels / columns)
    shape = {"nrows": lines, "ncols": columns, "squeeze": False, "sharey": sharey}
    drawing, made = style.blank(size[0] * columns, size[1] * lines, **shape)
    for unused in made.flat[panels:]:
        unused.set_axis_off()
    return drawing, list(made.flat[:panels])


def draw_cells(
    drawing: Drawing, plot: Axes, cells: Sequence[CellRuns], values: Sequence[Points], unit: str
) -> None:
    """Draw a line a cell: its values faint, their mean with its interval."""
    for line, (cell, found) in enumerate(zip(cells, values, strict=True)):
        below = [line + 0.28] * len(found)  # not hidden by the interval
        plot.plot(found, below, **cell.look.faint)
        if found:
            middle, reach = mean(found), interval(found)
            bars = plot.errorbar(middle, line, xerr=reach_of(found), **cell.look.marks)
            ends = f" ({reach[0]:.2f} to {reach[1]:.2f})" if reach else ""
            text = f"{cell.label}: {middle:.2f} {unit}{ends}, n = {len(found)}"
            drawing.tell(bars[0], [text])


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    # summed exactly: the order in which seeds finished does not matter
    return math.fsum(values) / len(values)


def reach_of(values: Sequence[float]) -> list[list[float]] | None:
    """Return how far the interval reaches below and above the mean, as matplotlib takes it."""
    found = interval(values)
    if found is None:
        return None
    return [[mean(values) - found[0]], [found[1] - mean(values)]]


# Their accuracy was not measured: they stand as a line at their energy.
LINES = {csv_files.ANN: "ANN of the same shape", csv_files.ANN_INT8: "that ANN, 8-bit integers"}


@styled
def draw_frontier(points: pd.DataFrame, cells: Sequence[CellRuns], axes: Sequence[str]) -> Drawing:
    """Draw the cells by themselves, and beside that all of them with the ANN and the teacher.

    `points` are those of frontier.csv, `axes` the varied settings; `cells` give label and look.
    """
    # apart, since the ANN may cost ten times as much: beside it all cells would be one dot
    drawing, (near, far) = style.blank(8.4, 3.8, ncols=2, width_ratios=[1.9, 1.0])
    every = [(cell, points[(points[list(axes)] == list(cell.key)).all(axis=1)]) for cell in cells]
    drawn = [(cell, rows) for cell, rows in every if (rows["point"] == csv_files.ALL_STEPS).any()]
    draw_others(far, points)
    for plot in (near, far):
        for cell, rows in drawn:
            curve, ends = (
                rows[rows["point"] == kind] for kind in (csv_files.EARLY_EXIT, csv_files.ALL_STEPS)
            )
            if len(curve):
                energies = curve["energy_pj"] / 1e6
                plot.plot(energies, 100 * curve["accuracy"], color=cell.look.colour)
                draw_point(drawing, plot, curve.iloc[0], cell, plot is near, hollow=True)
            draw_point(drawing, plot, ends.iloc[0], cell, plot is near)
    drawing.figure.supxlabel("energy an image (µJ, arithmetic alone)", fontsize="medium")
    near.set_ylabel(figures.ACCURACY)
    near.margins(0.1, 0.08)
    exits = bool((points["point"] == csv_files.EARLY_EXIT).any())
    near.set_title(
        "first step alone (hollow), early exit (line), all steps (filled)" if exits else ""
    )
    places = [place_of(rows[rows["point"] == csv_files.ALL_STEPS].iloc[0]) for _, rows in drawn]
    names = [drawable(cell.label) for cell, _ in drawn]
    label_points(near, places, names, [cell.look.colour for cell, _ in drawn])
    return drawing


def place_of(point: pd.Series) -> style.Place:
    """Return where a point stands, in uJ and percent."""
    return point["energy_pj"] / 1e6, 100 * point["accuracy"]


def draw_point(
    drawing: Drawing,
    plot: Axes,
    point: pd.Series,
    cell: CellRuns,
    intervals: bool,
    hollow: bool = False,
) -> None:
    """Draw a mean, with its intervals in both directions where there are any."""
    across, up = None, None  # how far the intervals reach below and above the mean
    # a single seed has no interval
    if intervals and not math.isnan(point["accuracy_low"]):
        across, up = (
            [[scale * (point[name] - point[low])], [scale * (point[high] - point[name])]]
            for name, low, high, scale in (
                ("energy_pj", "energy_low_pj", "energy_high_pj", 1e-6),
                ("accuracy", "accuracy_low", "accuracy_high", 100.0),
            )
        )
    look = {**cell.look.marks, **({"markerfacecolor": "none"} if hollow else {})}
    size = 6 if intervals else 4
    place = place_of(point)
    bars = plot.errorbar(*place, xerr=across, yerr=up, markersize=size, elinewidth=1, **look)
    which = "first step alone" if hollow else "all steps"
    drawing.tell(bars[0], [f"{cell.label}, {which}: {place[0]:.4g} µJ, {place[1]:.2f} %"])


def draw_others(plot: Axes, points: pd.DataFrame) -> None:
    """Draw the teacher, and a line at each energy whose accuracy nobody measured."""
    energies = [float(energy) for energy in points["energy_pj"].dropna()]
    figures.energy_axis(plot, energies, 1e6)
    plot.set_xlabel("")
    plot.set_ylabel("")
    # cells that share a teacher have its point in common
    taught = points[points["point"] == csv_files.TEACHER].drop_duplicates(["energy_pj", "accuracy"])
    for place in [place_of(point) for _, point in taught.iterrows()]:
        plot.plot(*place, **style.TEACHER.marks)
        plot.annotate("teacher", place, (-6, 5), textcoords="offset points", ha="right")
    lines = [
        (energy / 1e6, text)
        for point, text in LINES.items()
        for energy in points.loc[points["point"] == point, "energy_pj"].unique()
    ]
    for above, (energy, text) in enumerate(lines):
        style.name_line(plot, energy, text, above)
    plot.margins(y=0.12)
    plot.set_title("beside what does not spike", pad=8 + 11 * len(lines))
