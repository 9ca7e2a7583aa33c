"""The tables of an ablation: a row a run, and a row a cell with its paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from tser_cli.engine.ablation.cell_folder import result_row
from tser_cli.engine.ablation.grid import Request
from tser_cli.report.csv_files import ablation_schema, summary_schema, write_csv
from tser_cli.report.statistics import interval

Rows = list[dict[str, Any]]


def write_tables(request: Request, folder: Path) -> Rows:
    """Write ablation.csv and summary.csv of the runs there are; return the rows of the latter.

    Raises RunError.
    """
    steps = max(cell.config.model.timesteps for cell in request.cells)
    rows = [{**cell.varied, **result_row(cell, folder)} for cell in request.cells]
    write_csv(folder / "ablation.csv", rows, ablation_schema(request.axes, steps))
    summary = summarise(rows, request.axes, request.baseline, request.measure)
    write_csv(folder / "summary.csv", summary, summary_schema(request.axes))
    return summary


def summarise(
    rows: Sequence[Mapping[str, Any]],
    axes: Sequence[str],
    baseline: Mapping[str, Any],
    measure: str,
) -> Rows:
    """Return a row a cell: mean, deviation, and the difference to the cell's baseline.

    That is the cell with the settings of `baseline` which is like it in all others. Differences are
    paired by seed: the same initial weights, data order and split. `resolved` is whether the
    interval leaves 0 out; None where there is no interval.
    """
    cells = values_of_cells(rows, axes, measure)
    summary = []
    for key, values in cells.items():
        settings = dict(zip(axes, key, strict=True))
        base_key = tuple(str(baseline.get(axis, settings[axis])) for axis in axes)
        base = None if key == base_key else cells.get(base_key, pd.Series(dtype=float))
        summary.append({**settings, "measure": measure, **statistics(values, base)})
    return summary


def values_of_cells(
    rows: Sequence[Mapping[str, Any]], axes: Sequence[str], measure: str
) -> dict[tuple[str, ...], pd.Series]:
    """Return each cell's values by seed, of the runs that finished; cells in the rows' order."""
    table = pd.DataFrame(list(rows), columns=[*axes, "seed", "state", measure])
    table[list(axes)] = table[list(axes)].astype(str)
    values = pd.to_numeric(table[measure].replace("", None)).astype(float)
    table["value"] = values.where(table["state"] == "finished")
    table["seed"] = table["seed"].astype(int)
    return {
        tuple(map(str, key)): cell.set_index("seed")["value"].dropna()
        for key, cell in table.groupby(list(axes), sort=False)
    }


def statistics(values: pd.Series, base: pd.Series | None) -> dict[str, Any]:
    """Return the statistics of a cell; `base` holds its baseline's values, None if it is one."""
    differences = [] if base is None else (values - base).dropna().tolist()
    reach = interval(differences)
    low, high = reach or (None, None)
    return {
        "n": len(values),
        "accuracy_mean": fmean(values) if len(values) else None,
        "accuracy_std": float(values.std()) if len(values) > 1 else None,
        "baseline": int(base is None),
        "difference_mean": fmean(differences) if differences else None,
        "difference_low": low,
        "difference_high": high,
        "pairs": len(differences),
        "resolved": None if reach is None else int(not reach[0] <= 0.0 <= reach[1]),
    }
