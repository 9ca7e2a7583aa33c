"""The tables of an ablation: a row a run, and a row a cell with its paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tser_cli.base.errors import RunError, warn_once
from tser_cli.engine.ablation.folder import find_cell, provenance, result_row
from tser_cli.engine.ablation.grid import Request
from tser_cli.engine.runs.folder import Run
from tser_cli.report.csv_files import STATISTICS, ablation_schema, summary_schema, write_csv
from tser_cli.report.predictions import PREDICTIONS, Predictions, read_predictions
from tser_cli.report.statistics import (
    CONFIDENCE,
    FEWEST,
    holm,
    interval,
    mcnemar,
    paired_p,
    two_way_interval,
)

Rows = list[dict[str, Any]]
Key = tuple[str, ...]
# Of each cell, by seed: whether the network's answer for each test image is right, [I].
Answers = Mapping[Key, Mapping[int, NDArray[np.bool_]]]


def write_tables(request: Request, folder: Path) -> Rows:
    """Write ablation.csv and summary.csv of the runs there are; return the rows of the latter.

    Raises RunError.
    """
    steps = max(cell.config.model.timesteps for cell in request.cells)
    rows = [
        {**cell.varied, **result_row(cell, folder), **provenance(cell, folder)}
        for cell in request.cells
    ]
    write_csv(folder / "ablation.csv", rows, ablation_schema(request.axes, steps))
    answers = answers_of(request, folder) if request.measure == "accuracy" else {}
    summary = summarise(rows, request.axes, request.baseline, request.measure, answers)
    write_csv(folder / "summary.csv", summary, summary_schema(request.axes))
    return summary


def answers_of(request: Request, folder: Path) -> Answers:
    """Return which test images each finished run gets right.

    A run whose predictions are damaged is named in a warning and left out.
    """
    answers: dict[Key, dict[int, NDArray[np.bool_]]] = {}
    for cell in request.cells:
        run = find_cell(cell, folder)
        predictions = _predictions(run) if run else None
        if predictions is not None:
            key = tuple(str(cell.varied[axis]) for axis in request.axes)
            answers.setdefault(key, {})[cell.seed] = predictions.right()
    return answers


def _predictions(run: Run) -> Predictions | None:
    try:
        return read_predictions(run.folder / PREDICTIONS)
    except RunError as error:
        warn_once(str(error))
        return None


def summarise(
    rows: Sequence[Mapping[str, Any]],
    axes: Sequence[str],
    baseline: Mapping[str, Any],
    measure: str,
    answers: Answers | None = None,
) -> Rows:
    """Return a row a cell: mean, deviation, and the difference to the cell's baseline.

    That is the cell with the settings of `baseline` which is like it in all others. Differences are
    paired by seed: the same initial weights, data order and split. `resolved` is whether the
    interval leaves 0 out, `resolved_holm` whether that holds for all comparisons of the table
    together; None where there are fewer than five pairs. With `answers` there are an interval over
    seeds and images, and for a single pair McNemar's test.
    """
    cells, right = values_of_cells(rows, axes, measure), answers or {}
    summary = []
    for key, values in cells.items():
        settings = dict(zip(axes, key, strict=True))
        base_key = tuple(str(baseline.get(axis, settings[axis])) for axis in axes)
        row = {**settings, **dict.fromkeys(STATISTICS), "measure": measure, **describe(values)}
        row |= {"baseline": int(key == base_key), "pairs": 0}
        if key != base_key and base_key in cells:
            row |= compare(values, cells[base_key])
            row |= compare_answers(right.get(key, {}), right.get(base_key, {}))
        summary.append(row)
    return with_holm(summary)


def values_of_cells(
    rows: Sequence[Mapping[str, Any]], axes: Sequence[str], measure: str
) -> dict[Key, pd.Series]:
    """Return each cell's values by seed, of the runs that finished; cells in the rows' order."""
    # as text first: of 0 and 0.05 pandas would make 0.0 and 0.05, and 0 would be found no more
    named = [{**row, **{axis: str(row[axis]) for axis in axes}} for row in rows]
    table = pd.DataFrame(named, columns=[*axes, "seed", "state", measure])
    values = pd.to_numeric(table[measure].replace("", None)).astype(float)
    table["value"] = values.where(table["state"] == "finished")
    table["seed"] = table["seed"].astype(int)
    return {
        tuple(map(str, key)): cell.set_index("seed")["value"].dropna()
        for key, cell in table.groupby(list(axes), sort=False)
    }


def describe(values: pd.Series) -> dict[str, Any]:
    """Return the mean of a cell and the standard deviation over its seeds."""
    return {
        "n": len(values),
        "accuracy_mean": fmean(values) if len(values) else None,
        "accuracy_std": float(values.std()) if len(values) > 1 else None,
    }


def compare(values: pd.Series, base: pd.Series) -> dict[str, Any]:
    """Return the differences of a cell to its baseline, over the seeds that both have."""
    differences = (values - base).dropna().tolist()
    reach = interval(differences)
    found: dict[str, Any] = {"pairs": len(differences)}
    if differences:
        found["difference_mean"] = fmean(differences)
    if reach is not None:
        found |= {"difference_low": reach[0], "difference_high": reach[1]}
    if reach is not None and len(differences) >= FEWEST:
        found["resolved"] = int(not reach[0] <= 0.0 <= reach[1])
        found["p_value"] = paired_p(differences)
    return found


def compare_answers(
    right: Mapping[int, NDArray[np.bool_]], base: Mapping[int, NDArray[np.bool_]]
) -> dict[str, Any]:
    """Return the interval over seeds and images, and McNemar's test where there is one seed.

    Nothing where the runs have no predictions, or not of the same images.
    """
    seeds = [seed for seed in right if seed in base and len(right[seed]) == len(base[seed])]
    if len(seeds) == 1:
        return {"p_mcnemar": mcnemar(right[seeds[0]], base[seeds[0]])}
    pairs = [right[seed].astype(float) - base[seed].astype(float) for seed in seeds]
    reach = two_way_interval(np.stack(pairs)) if pairs else None
    return {"two_way_low": reach[0], "two_way_high": reach[1]} if reach else {}


def with_holm(summary: Rows) -> Rows:
    """Return the rows with their p-values adjusted for the number of comparisons (Holm)."""
    adjusted = holm([row["p_value"] for row in summary])
    return [
        {**row, "p_holm": p, "resolved_holm": None if p is None else int(p < 1 - CONFIDENCE)}
        for row, p in zip(summary, adjusted, strict=True)
    ]
