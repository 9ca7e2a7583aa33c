"""Tables on the terminal. Results go to standard output, messages to standard error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tser_cli.registry import MethodEntry

BAR_WIDTH = 10


def percent(fraction: float | None) -> str:
    """0.9534 -> "95.34 %"; None -> "-"."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def duration(seconds: float) -> str:
    """Write a time: 37.2 -> "37 s", 4000 -> "67 min", 90000 -> "25.0 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def bar(fraction: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of `width` characters for a fraction from 0 to 1."""
    return "█" * round(max(0.0, min(fraction, 1.0)) * width)


def per_timestep_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Accuracy at each step, cumulative accuracy, and the teacher's on the last line."""
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
    """Return one line: the final accuracy, and how far it is from the teacher's."""
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
    """Return a line a method: its name, what it does, its source, its weights with their defaults.

    The weights that most methods read are left to the caption.
    """
    common = common_weights(methods)
    caption = f"most methods also read {_listed(common)}"
    shown = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left")
    for name in ("method", "what it does", "source", "weights"):
        shown.add_column(name, no_wrap=name == "method")
    for name, entry in methods.items():
        read = entry.settings
        own = {key: value for key, value in read.weights().items() if common.get(key) != value}
        shown.add_row(name, read.summary, read.source, _listed(own))
    return shown


def common_weights(methods: Mapping[str, MethodEntry]) -> dict[str, Any]:
    """Return the weights that at least four in five methods read with the same default."""
    stated = [item for entry in methods.values() for item in entry.settings.weights().items()]
    return {key: value for (key, value), n in Counter(stated).items() if 5 * n >= 4 * len(methods)}


def _listed(weights: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in weights.items())


def deviations(methods: Mapping[str, MethodEntry]) -> str:
    """Return a line a method that differs from the code that its authors released."""
    stated = {name: entry.settings.deviations for name, entry in methods.items()}
    lines = [f"  {name}: {text}" for name, text in stated.items() if text]
    return "\n".join(["different from the authors' code:", *lines])


def next_steps(folder: Path, commands: Sequence[str]) -> str:
    """Return where the run is, and what to type next."""
    lines = [f"run folder: {folder}", "next:"]
    return "\n".join([*lines, *(f"  {command}" for command in commands)])
