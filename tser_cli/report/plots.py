"""Figures, made from tables alone, so that they can be drawn again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tser_cli.files import make_folder, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` in the format of the path's suffix. Raises RunError."""
    make_folder(path.parent)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=150, bbox_inches="tight")
    write_whole(path, buffer.getvalue())


def plot_per_timestep(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Bars: accuracy at each t. Lines: the teacher's and the time-averaged accuracy."""
    from matplotlib.figure import Figure  # a second that a training would begin later

    figure = Figure(figsize=(max(4.0, 0.7 * len(rows) + 3), 3.4))
    axes = figure.subplots()
    steps = [row["t"] for row in rows]
    heights = [100 * row["accuracy_at_t"] for row in rows]
    bars = axes.bar(steps, heights, width=0.6, color="#4c72b0", label="accuracy at t")
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    averaged, teacher = 100 * rows[-1]["accuracy_cumulative"], rows[-1]["teacher_accuracy"]
    axes.axhline(
        averaged, color="#c44e52", label=f"averaged over 1..{rows[-1]['t']}: {averaged:.2f}"
    )
    shown = [*heights, averaged]
    if teacher is not None:
        axes.axhline(
            100 * teacher, color="#55a868", linestyle="--", label=f"teacher: {100 * teacher:.2f}"
        )
        shown.append(100 * teacher)
    margin = max(0.25 * (max(shown) - min(shown)), 0.5)
    axes.set_ylim(max(0.0, min(shown) - 2 * margin), max(shown) + margin)
    axes.set_xticks(steps)
    axes.set_xlabel("time step t")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    save_figure(figure, path)
