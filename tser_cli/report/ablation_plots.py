"""Figures of an ablation, from its CSVs alone, so that they can be drawn again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tser_cli.report.csv_files import read_csv
from tser_cli.report.plots import save_figure

Rows = list[dict[str, str]]
FORMATS = (".png", ".svg")
FIXED = (
    *("seed", "state", "accuracy", "teacher_accuracy", "validation_accuracy", "energy_pj"),
    *("seconds", "folder"),
)
PER_STEP = ("accuracy_at_", "accuracy_cumulative_")
COLUMNS_OF_PANELS = 4


def draw_all(folder: Path) -> list[Path]:
    """Draw what the tables in `folder` allow, into its figures/; returns the files."""
    rows = [row for row in read_csv(folder / "ablation.csv") if row["state"] == "finished"]
    if not rows:
        return []
    axes, measure = axes_of(rows), measure_of(folder)
    drawings: dict[str, Callable[[], Figure]] = {
        "per_timestep": lambda: draw_per_timestep(rows, axes),
        "accuracy": lambda: draw_distribution(rows, axes, measure),
        "energy": lambda: draw_energy(rows, axes),
    }
    points = folder / "tsne.csv"
    if points.is_file():
        drawings["tsne"] = lambda: draw_tsne(read_csv(points))
    written = []
    for name, draw in drawings.items():
        figure = draw()
        for suffix in FORMATS:
            path = folder / "figures" / f"{name}{suffix}"
            save_figure(figure, path)
            written.append(path)
    return written


def axes_of(rows: Rows) -> list[str]:
    """The varied columns of ablation.csv."""
    return [name for name in rows[0] if name not in FIXED and not name.startswith(PER_STEP)]


def measure_of(folder: Path) -> str:
    """The column that summary.csv compares, `accuracy` where there is no such table."""
    path = folder / "summary.csv"
    rows = read_csv(path) if path.is_file() else []
    return rows[0]["measure"] if rows else "accuracy"


def short(axis: str) -> str:
    """`method.entropy_weight` -> `entropy_weight`, `method.name` -> `method`."""
    section, _, key = axis.partition(".")
    return section if key == "name" else key or section


def groups(rows: Rows, axes: Sequence[str]) -> dict[str, Rows]:
    """The rows of each cell by its label: `kd`, or `method=kd, timesteps=2` of several axes."""
    found: dict[str, Rows] = {}
    for row in rows:
        named = [f"{short(axis)}={row[axis]}" for axis in axes]
        label = row[axes[0]] if len(axes) == 1 else ", ".join(named)
        found.setdefault(label, []).append(row)
    return found


def numbers(rows: Rows, column: str) -> list[float]:
    """The values of a column in percent, without empty ones."""
    return [100 * float(row[column]) for row in rows if row.get(column)]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return math.fsum(values) / len(values)


def teacher_line(plot: Axes, rows: Rows) -> list[float]:
    """The teacher's accuracy as a dashed line, where the rows have one; returns its height."""
    teacher = numbers(rows, "teacher_accuracy")[:1]
    for height in teacher:
        plot.axhline(height, color="0.4", linestyle="--", label=f"teacher {height:.2f}")
    return teacher


def colour(number: int, cells: int) -> tuple[float, ...]:
    """The colour of a cell: of ten where they suffice, else of twenty."""
    palette = colormaps["tab10" if cells <= 10 else "tab20"]
    return tuple(palette(number % palette.N))


def place_legend(plot: Axes) -> None:
    """The legend to the right of the plot."""
    plot.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def draw_per_timestep(rows: Rows, axes: Sequence[str]) -> Figure:
    """Mean accuracy at each t of each cell, its averaged accuracy as a line (paper's Fig. 2)."""
    figure = Figure(figsize=(6.5, 3.8))
    plot = figure.subplots()
    prefix = PER_STEP[0]
    steps = sorted(int(name.removeprefix(prefix)) for name in rows[0] if name.startswith(prefix))
    cells = groups(rows, axes)
    width = 0.8 / len(cells)
    shown = []
    for number, (name, members) in enumerate(cells.items()):
        at = {t: numbers(members, f"{prefix}{t}") for t in steps}
        heights = {t: mean(values) for t, values in at.items() if values}
        left = (number - (len(cells) - 1) / 2) * width
        places, color = [t + left for t in heights], colour(number, len(cells))
        plot.bar(places, list(heights.values()), width, color=color)
        averaged = mean(numbers(members, "accuracy"))
        plot.axhline(averaged, color=color, linewidth=1, label=f"{name}: {averaged:.2f}")
        shown += [*heights.values(), averaged]
    shown += teacher_line(plot, rows)
    plot.set_ylim(max(0.0, min(shown) - 1), max(shown) + 1)
    plot.set_xticks(steps)
    plot.set_xlabel("time step t")
    plot.set_ylabel("accuracy (%), lines: averaged")
    place_legend(plot)
    return figure


def draw_distribution(rows: Rows, axes: Sequence[str], measure: str = "accuracy") -> Figure:
    """Every seed's accuracy as a point and the mean as a bar, a column a cell (Figs. 3 and 4)."""
    cells = groups(rows, axes)
    figure = Figure(figsize=(max(4.0, 0.8 * len(cells) + 2), 3.6))
    plot = figure.subplots()
    for number, members in enumerate(cells.values()):
        values = numbers(members, measure)
        color = colour(number, len(cells))
        plot.plot([number] * len(values), values, "o", alpha=0.6, color=color)
        if values:
            plot.plot([number - 0.3, number + 0.3], [mean(values)] * 2, color="black")
    if measure == "accuracy" and teacher_line(plot, rows):
        place_legend(plot)
    plot.set_xticks(range(len(cells)), list(cells), rotation=30, ha="right", fontsize=8)
    plot.set_xlabel(", ".join(short(axis) for axis in axes))
    plot.set_ylabel(f"{measure.replace('_', ' ')} (%)")
    return figure


def draw_energy(rows: Rows, axes: Sequence[str]) -> Figure:
    """Accuracy against energy, a point a run."""
    figure = Figure(figsize=(5.2, 3.6))
    plot = figure.subplots()
    cells = groups(rows, axes)
    for number, (name, members) in enumerate(cells.items()):
        energies = [float(row["energy_pj"]) / 1e6 for row in members]
        heights, color = numbers(members, "accuracy"), colour(number, len(cells))
        plot.plot(energies, heights, "o", color=color, label=name, alpha=0.7)
    plot.set_xlabel("energy per image (µJ, arithmetic alone)")
    plot.set_ylabel("accuracy (%)")
    place_legend(plot)
    return figure


def draw_tsne(rows: Rows) -> Figure:
    """t-SNE of the penultimate features, a panel a network, a colour a class (paper's Fig. 5)."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    columns = min(COLUMNS_OF_PANELS, len(networks))
    lines = math.ceil(len(networks) / columns)
    figure = Figure(figsize=(2.6 * columns, 2.7 * lines))
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, network in zip(panels, networks, strict=False):
        members = [row for row in rows if row["network"] == network]
        x, y = ([float(row[axis]) for row in members] for axis in ("x", "y"))
        panel.scatter(x, y, s=3, c=[int(row["label"]) for row in members], cmap="tab20")
        panel.set_title(network, fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
    for panel in panels[len(networks) :]:
        panel.set_axis_off()
    return figure
