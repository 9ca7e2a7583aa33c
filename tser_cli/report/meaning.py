"""What the figures of a training mean, in two plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tser_cli.report.energy_report import joules

Row = Mapping[str, Any]
ARITHMETIC = "arithmetic alone, without memory"


def sentences(
    kind: str, rows: Sequence[Row], energy_pj: float | None, ann_energy_pj: float | None
) -> list[str]:
    """Return what a run of `kind` (teacher or student) measured on test images, in words.

    `rows`: those of per_timestep.csv; the energies are means of an image, None where unknown.
    """
    if kind == "teacher":
        return [_right(rows), "A student learns from its answers, and is compared with them."]
    cost = [] if energy_pj is None or not ann_energy_pj else [_cost(energy_pj, ann_energy_pj)]
    return [_right(rows), *(cost or ["No test image chose anything: neither epoch nor setting."])]


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


def _cost(energy_pj: float, ann_energy_pj: float) -> str:
    """Compare with the ANN of the same shape, which multiplies where this one adds spikes."""
    less = ann_energy_pj / energy_pj
    ratio = f"{less:.1f} times less" if less >= 1.0 else f"{1 / less:.1f} times more"
    return (
        f"An image costs it {joules(energy_pj)}, {ratio} than the same network with ordinary "
        f"activations ({ARITHMETIC})."
    )
