"""What the accuracies of a training mean, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def sentences(kind: str, rows: Sequence[Row]) -> list[str]:
    """Return what the accuracies of a run of `kind` (teacher or student) mean, in words.

    `rows`: those of per_timestep.csv.
    """
    if kind == "teacher":
        return [_right(rows), "A student learns from its answers, and is compared with them."]
    return [_right(rows)]


def _right(rows: Sequence[Row]) -> str:
    last = rows[-1]
    right = _count(last, "accuracy_cumulative")
    text = f"It is right about {right:,} of {last['images']:,} images that it was never trained on"
    if len(rows) > 1:
        text += f" ({_count(rows[0], 'accuracy_at_t'):,} by its first time step alone)"
    if last["teacher_accuracy"] is not None:
        text += f", its teacher about {_count(last, 'teacher_accuracy'):,}"
    return f"{text}."


def _count(row: Row, name: str) -> int:
    return round(float(row[name]) * int(row["images"]))
