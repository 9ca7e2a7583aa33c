"""Figures of an ablation, from its CSVs alone, so that they can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tser_cli.report.plots import save_figure
from tser_cli.report.tables import read_csv

Rows = list[dict[str, str]]
FORMATS = (".png", ".svg")
FIXED = {
    "seed",
    "state",
    "accuracy",
    "teacher_accuracy",
    "validation_accuracy",
    "energy_pj",
    "seconds",
    "folder",
}


def draw_all(folder: Path) -> list[Path]:
    """Draw what the tables in `folder` allow, into its figures/; returns the files."""
    rows = [row for row in read_csv(folder / "ablation.csv") if row["state"] == "finished"]
    if not rows:
        return []
    axes = axes_of(rows)
    drawings = {
        "per_timestep": draw_per_timestep(rows, axes),
        "accuracy": draw_distribution(rows, axes),
        "energy": draw_energy(rows, axes),
    }
    written = []
    for name, figure in drawings.items():
        for suffix in FORMATS:
            path = folder / "figures" / f"{name}{suffix}"
            save_figure(figure, path)
            written.append(path)
    return written


def axes_of(rows: Rows) -> list[str]:
    """The varied columns of ablation.csv."""
    return [name for name in rows[0] if name not in FIXED and not name.startswith("accuracy_at_")]


def groups(rows: Rows, axes: Sequence[str]) -> dict[str, Rows]:
    """The rows of each cell, by a label of its varied settings."""
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(", ".join(row[axis] for axis in axes), []).append(row)
    return found


def numbers(rows: Rows, column: str) -> list[float]:
    """The values of a column in percent, without empty ones."""
    return [100 * float(row[column]) for row in rows if row.get(column)]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def teacher_line(axes: Axes, rows: Rows) -> None:
    """The teacher's accuracy as a dashed line, where the rows have one."""
    teacher = numbers(rows, "teacher_accuracy")
    if teacher:
        axes.axhline(teacher[0], color="0.4", linestyle="--", label=f"teacher {teacher[0]:.2f}")


def draw_per_timestep(rows: Rows, axes: Sequence[str]) -> Figure:
    """Mean accuracy at each t of each cell, its averaged accuracy as a line (paper's Fig. 2)."""
    figure = Figure(figsize=(6.5, 3.8))
    plot = figure.subplots()
    steps = sorted(int(name.rsplit("_", 1)[1]) for name in rows[0] if "accuracy_at_" in name)
    cells = groups(rows, axes)
    width = 0.8 / len(cells)
    for number, (name, members) in enumerate(cells.items()):
        heights = [numbers(members, f"accuracy_at_{t}") for t in steps]
        present = [(t, mean(values)) for t, values in zip(steps, heights, strict=True) if values]
        shift = (number - (len(cells) - 1) / 2) * width
        color = f"C{number % 10}"
        plot.bar([t + shift for t, _ in present], [h for _, h in present], width, color=color)
        averaged = mean(numbers(members, "accuracy"))
        plot.axhline(averaged, color=color, linewidth=1, label=f"{name}: {averaged:.2f}")
    teacher_line(plot, rows)
    shown = [
        value
        for row in rows
        for name in row
        if name.startswith("accuracy")
        for value in numbers([row], name)
    ]
    plot.set_ylim(max(0.0, min(shown) - 1), min(100.0, max([*shown, *_teachers(rows)]) + 1))
    plot.set_xticks(steps)
    plot.set_xlabel("time step t")
    plot.set_ylabel("accuracy (%), lines: averaged")
    plot.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _teachers(rows: Rows) -> list[float]:
    return numbers(rows, "teacher_accuracy")


def draw_distribution(rows: Rows, axes: Sequence[str]) -> Figure:
    """Every seed's accuracy as a point and the mean as a bar, a column a cell (Figs. 3 and 4)."""
    cells = groups(rows, axes)
    figure = Figure(figsize=(max(4.0, 0.8 * len(cells) + 2), 3.6))
    plot = figure.subplots()
    for number, members in enumerate(cells.values()):
        values = numbers(members, "accuracy")
        plot.plot([number] * len(values), values, "o", alpha=0.6, color=f"C{number % 10}")
        plot.plot([number - 0.3, number + 0.3], [mean(values)] * 2, color="black")
    teacher_line(plot, rows)
    plot.set_xticks(range(len(cells)), list(cells), rotation=30, ha="right", fontsize=8)
    plot.set_xlabel(", ".join(axes))
    plot.set_ylabel("accuracy (%)")
    return figure


def draw_energy(rows: Rows, axes: Sequence[str]) -> Figure:
    """Accuracy against energy, a point a run."""
    figure = Figure(figsize=(5.2, 3.6))
    plot = figure.subplots()
    for number, (name, members) in enumerate(groups(rows, axes).items()):
        energies = [float(row["energy_pj"]) / 1e6 for row in members]
        plot.plot(
            energies,
            numbers(members, "accuracy"),
            "o",
            color=f"C{number % 10}",
            label=name,
            alpha=0.7,
        )
    plot.set_xlabel("energy per image (µJ, arithmetic alone)")
    plot.set_ylabel("accuracy (%)")
    plot.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure
