"""The tables of an ablation: a row a run, and a row a cell with its paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser_cli.engine.ablation.folder import CellRun, cell_name, read_cell
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.report.comparison import CellStatistics, Key, Values, summarise
from tser_cli.report.csv_files import STATISTICS, ablation_schema, by_cell, write_csv

Found = Sequence[tuple[Cell, CellRun]]


def write_tables(request: Request, folder: Path) -> list[CellStatistics]:
    """Write ablation.csv and summary.csv of the runs there are; return what the latter says.

    Raises RunError.
    """
    steps = max(cell.config.model.timesteps for cell in request.cells)
    found = [(cell, read_cell(cell, folder)) for cell in request.cells]
    rows = [_row(cell, run) for cell, run in found]
    write_csv(folder / "ablation.csv", rows, ablation_schema(request.axes, steps))
    # the whole table each time: a difference changes with every cell that its baseline gains
    values = values_of_cells(found, request.axes, request.measure)
    answers: dict[Key, dict[int, NDArray[np.bool_]]] = {}
    # kept answers are to test images: they say nothing of an accuracy on held-out ones
    for cell, run in found if request.measure == "accuracy" else ():
        if run.right is not None:
            answers.setdefault(key_of(cell, request.axes), {})[cell.seed] = run.right
    summary = summarise(values, request.axes, request.baseline, request.measure, answers)
    write_csv(
        folder / "summary.csv", [cell.row() for cell in summary], by_cell(request.axes, STATISTICS)
    )
    return summary


def _row(cell: Cell, found: CellRun) -> dict[str, Any]:
    """Return the row of ablation.csv. `seconds` are of training, in all its parts."""
    row = {**cell.varied, "seed": cell.seed, "state": found.state}
    row |= {"folder": f"cells/{cell_name(cell)}", **cell.in_words}
    if found.record is None:
        return row
    result, environment = found.record.result, found.record.environment
    assert result is not None, "it has finished"
    git = environment.get("git") or {}
    commit = f"{git['commit']}{'+changes' if git.get('changed') else ''}" if git else ""
    row["commit"] = commit or f"version {environment.get('tser')}"  # where it was no git checkout
    row["torch"] = environment.get("packages", {}).get("torch")
    # on CPUs the order of sums, and so their last bits, depends on the threads
    row["threads"] = environment.get("threads")
    names = ("accuracy", "teacher_accuracy", "best_validation_accuracy", "energy_pj", "seconds")
    row |= {name: getattr(result, name) for name in names}
    for step in result.per_timestep:
        for name in ("accuracy_at", "accuracy_cumulative"):
            row[f"{name}_{step['t']}"] = step["accuracy_at_t" if name == "accuracy_at" else name]
    return row


def key_of(cell: Cell, axes: Iterable[str]) -> Key:
    """Return the varied settings of a cell as texts."""
    return tuple(str(cell.varied[axis]) for axis in axes)


def values_of_cells(found: Found, axes: Sequence[str], measure: str) -> Mapping[Key, Values]:
    """Return each cell's values of a figure of its results, by seed; cells in their order."""
    values: dict[Key, dict[int, float]] = {}
    for cell, run in found:
        of_cell = values.setdefault(key_of(cell, axes), {})
        result = run.record.result if run.record else None
        if result is not None and getattr(result, measure) is not None:
            of_cell[cell.seed] = getattr(result, measure)
    return values
