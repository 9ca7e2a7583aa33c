"""The forms in which energy.csv can be written: with sums, or so that a column can be summed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tser_cli.csv_words import ALL, TOTAL
from tser_cli.report.csv_files import (
    ENERGY,
    ENERGY_LONG,
    STEPWISE,
    Rows,
    Schema,
    energy_wide_schema,
    write_csv,
)

SUMS, LONG, WIDE = "sums", "long", "wide"


def write_energy_csv(path: Path, rows: Rows, form: str) -> None:
    """Write the rows of energy.csv in a form. Raises RunError where the file can't be written."""
    write_csv(path, *in_form(rows, form))


def in_form(rows: Rows, form: str) -> tuple[Rows, Schema]:
    """Return the rows of energy.csv, and the columns, in one of three forms.

    `sums`: as they are, with a row for each layer over all steps and the layer TOTAL. `long`: a row
    a layer and step. `wide`: a row a layer. In the last two each operation is in one row, so that
    a column's sum is the network's.
    """
    layers = [row for row in rows if row["layer"] != TOTAL]
    steps = [row for row in layers if row["t"] != ALL]
    if form == LONG:
        return [{name: row[name] for name in ENERGY_LONG} for row in steps], ENERGY_LONG
    if form == WIDE:
        return _wide(layers, steps), energy_wide_schema(rows[0]["timesteps"])
    assert form == SUMS
    return rows, ENERGY


def _wide(layers: Rows, steps: Rows) -> Rows:
    by_layer: dict[str, dict[str, Any]] = {
        row["layer"]: {name: value for name, value in row.items() if name != "t"}
        for row in layers
        if row["t"] == ALL
    }
    for row in steps:
        by_layer[row["layer"]].update({f"{name}_{row['t']}": row[name] for name in STEPWISE})
    return list(by_layer.values())
