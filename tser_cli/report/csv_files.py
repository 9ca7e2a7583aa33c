"""CSV tables: fixed schemas, full precision, written whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tser_cli.files import write_text

PER_TIMESTEP = (
    *("run", "dataset", "split", "method", "teacher", "student", "timesteps", "t"),
    *("accuracy_at_t", "accuracy_cumulative", "correct_at_t", "correct_cumulative", "images"),
    *("loss_at_t", "entropy_at_t", "confidence_at_t", "teacher_accuracy"),
)


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write `rows` with exactly `columns`; None becomes an empty field. Raises RunError."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as strings by column."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def metrics_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """metrics.csv: one row an epoch; the columns are those of the first row."""
    columns = list(rows[0]) if rows else ["epoch"]
    write_csv(path, rows, columns)


def per_timestep_csv(
    path: Path, rows: Sequence[dict[str, Any]], labels: dict[str, str | None]
) -> None:
    """per_timestep.csv: one row a time step; `labels` are the columns that name the run."""
    write_csv(path, [{**labels, **row} for row in rows], PER_TIMESTEP)
