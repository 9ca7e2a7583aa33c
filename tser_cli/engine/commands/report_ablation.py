"""What the tables of an ablation say, for a report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tser_cli.config import short_name
from tser_cli.engine.commands.report_files import existing, label, part, plain_rows
from tser_cli.errors import TserError
from tser_cli.report.ablation_plots import AT_T, Cell, baseline_of, cells_of, differences, mean
from tser_cli.report.csv_files import (
    PROVENANCE,
    STATISTICS,
    ablation_schema,
    axes_of,
    read_ablation,
    read_summary,
)
from tser_cli.report.page_values import AblationReport, CellReport, Missing
from tser_cli.report.statistics import interval
from tser_cli.visible import cut, visible

TABLES = ("ablation.csv", "summary.csv")
KNOWN = ablation_schema([], 0)
MOST_CELLS = 100
MOST_RUNS = 2000


def is_ablation(folder: Path) -> bool:
    """Return whether a folder is that of an ablation, finished or not."""
    return any((folder / name).is_file() for name in (*TABLES, "plan.json"))


def ablation_report(folder: Path) -> AblationReport:
    """Return what the tables in `folder` say; what is missing or damaged is said in words."""
    found = part("ablation.csv or summary.csv", lambda: _report(folder))
    if isinstance(found, Missing):
        return AblationReport(label(folder.name), str(folder), {}, "", (), (), found, (), {}, ())
    return found


def _report(folder: Path) -> AblationReport:
    runs, summary, axes = _read(folder)
    return AblationReport(
        name=label(folder.name),
        folder=str(folder),
        axes={label(axis): label(name) for axis, name in axes.items()},
        measure=label(str(summary["measure"].iloc[0])),
        said=tuple(_said(runs)),
        teachers=tuple(sorted(set(runs["teacher_accuracy"].dropna().tolist()))),
        cells=_cells(runs, summary, axes),
        runs=tuple({**dict.fromkeys(KNOWN), **row} for row in plain_rows(runs[:MOST_RUNS])),
        shared=_shared(runs),
        commands=_commands(folder, runs),
    )


def _read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Return both tables and the short names of the varied settings. Raises ValueError."""
    summary = read_summary(existing(folder, "summary.csv"))
    axes = {axis: _short(axis) for axis in axes_of(summary)}
    runs = read_ablation(existing(folder, "ablation.csv"), list(axes))
    if not len(summary) or not len(runs):
        raise ValueError("it has no rows")
    if len(summary) > MOST_CELLS:
        raise ValueError(f"it has more than {MOST_CELLS} cells")
    return runs, summary, axes


def _short(axis: str) -> str:
    try:
        return short_name(axis)
    except TserError:
        return axis


def _cells(
    runs: pd.DataFrame, summary: pd.DataFrame, axes: Mapping[str, str]
) -> tuple[CellReport, ...]:
    """Return a report a row of summary.csv, with the finished runs of its cell."""
    found = cells_of(runs, axes)
    measure = str(summary["measure"].iloc[0])
    paired = differences(found, measure, baseline_of(summary))
    by_key = {cell.key: (cell, values) for cell, values in zip(found, paired, strict=True)}
    return tuple(
        _cell(row, *by_key[key], measure)
        for row in ({**dict.fromkeys(STATISTICS), **found} for found in plain_rows(summary))
        if (key := tuple(str(row[axis]) for axis in axes)) in by_key
    )


def _cell(row: Mapping[str, Any], cell: Cell, paired: Sequence[float], measure: str) -> CellReport:
    values = {
        "accuracy": cell.percent(measure),
        "difference": list(paired),
        "energy_pj": [float(value) for value in cell.runs["energy_pj"].dropna()],
    }
    steps = sum(str(name).startswith(AT_T) for name in cell.runs)
    return CellReport(
        label=label(cell.label),
        row=row,
        accuracy=tuple(values["accuracy"]),
        difference=tuple(values["difference"]),
        energy_pj=tuple(values["energy_pj"]),
        intervals={name: interval(found) for name, found in values.items()},
        at_t=tuple(_at_t(cell, t) for t in range(1, steps + 1) if cell.percent(f"{AT_T}{t}")),
    )


def _at_t(cell: Cell, t: int) -> dict[str, Any]:
    found = cell.percent(f"{AT_T}{t}")
    reach = interval(found) or (None, None)
    return {"t": t, "mean": mean(found), "low": reach[0], "high": reach[1]}


def _said(runs: pd.DataFrame) -> list[str]:
    states = runs["state"].value_counts()
    missing = [f"{count} {label(state)}" for state, count in states.items() if state != "finished"]
    finished = int(states.get("finished", 0))
    return (
        [f"{finished} of {len(runs)} runs are finished ({', '.join(missing)})"] if missing else []
    )


def _shared(runs: pd.DataFrame) -> dict[str, str]:
    """Return where the runs come from, as far as all finished ones agree."""
    finished = runs[runs["state"] == "finished"]
    known = {name: finished[name].dropna().unique() for name in PROVENANCE if name in finished}
    return {
        name: cut(visible(str(values[0])), 600)
        for name, values in known.items()
        if len(values) == 1
    }


def _commands(folder: Path, runs: pd.DataFrame) -> tuple[str, ...]:
    """Return the command that repeats one cell: each keeps its settings, the ablation does not."""
    cells = [str(name) for name in runs["folder"].dropna()]
    kept = [folder / name / "cell.toml" for name in cells[:1]]
    return tuple(f"tser distill --recipe {shlex.quote(str(path))}" for path in kept)
