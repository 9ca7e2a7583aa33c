"""Tables and sentences for the terminal, ready to be printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tser_cli.registry import MethodEntry

BAR_WIDTH = 10


def percent(fraction: float | None) -> str:
    """Write a fraction: 0.9534 -> "95.34 %", None -> "-"."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def bar(fraction: float, width: int = BAR_WIDTH) -> str:
    """Draw a fraction from 0 to 1 as a bar of at most `width` characters."""
    return "█" * round(max(0.0, min(fraction, 1.0)) * width)


def per_timestep_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Lay out the accuracy at each step, the cumulative one, and the teacher's on the last line."""
    table = Table(title=f"{title}: accuracy", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("t", justify="right", no_wrap=True)
    for name in ("at t", "cumulative", "loss", "entropy", "confidence"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["t"]),
            percent(row["accuracy_at_t"]),
            percent(row["accuracy_cumulative"]),
            f"{row['loss_at_t']:.3f}",
            f"{row['entropy_at_t']:.3f}",
            f"{row['confidence_at_t']:.3f}",
            bar(row["accuracy_cumulative"]),
        )
    teacher = rows[-1]["teacher_accuracy"]
    if teacher is not None:
        table.add_section()
        table.add_row("teacher", "", percent(teacher), "", "", "", bar(teacher))
    return table


def summary(rows: Sequence[dict[str, Any]], split: str) -> str:
    """Say in one line the final accuracy, and how far it is from the teacher's."""
    last = rows[-1]
    images, teacher = last["images"], last["teacher_accuracy"]
    text = f"accuracy {percent(last['accuracy_cumulative'])} of {images} {split} images"
    if last["timesteps"] > 1:
        text += f" after {last['timesteps']} time steps"
    if teacher is None:
        return text
    gap = 100 * (last["accuracy_cumulative"] - teacher)
    return f"{text}; teacher {percent(teacher)} ({gap:+.2f} points)"


def methods_table(methods: Mapping[str, MethodEntry]) -> Table:
    """Lay out a line a method: its name, what it does, its source, its own weights."""
    shown = Table(box=SIMPLE_HEAD)
    for name in ("method", "what it does", "source", "own weights"):
        shown.add_column(name, no_wrap=name == "method")
    for name, entry in methods.items():
        weights = ", ".join(f"{key} {value}" for key, value in entry.weights.items())
        shown.add_row(name, entry.summary, entry.source, weights)
    return shown


def next_steps(folder: Path, commands: Sequence[str]) -> str:
    """Say where the run is, and what to type next."""
    lines = [f"run folder: {folder}", "next:"]
    return "\n".join([*lines, *(f"  {command}" for command in commands)])
