"""The tables of an ablation: means, standard deviations, paired differences with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tser_cli.report.csv_files import write_csv

CONFIDENCE = 0.95
STATISTICS = (
    *("measure", "n", "accuracy_mean", "accuracy_std", "baseline", "difference_mean"),
    *("difference_low", "difference_high", "pairs", "resolved"),
)


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of paired differences, by Student's t with n - 1 degrees.

    mean +- t(0.975, n - 1) s / sqrt(n); None for fewer than two.
    """
    if len(differences) < 2:
        return None
    from scipy.stats import t

    mean = statistics.fmean(differences)
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * spread
    return mean - reach, mean + reach


def summarise(
    rows: Sequence[dict[str, Any]], axes: Sequence[str], baseline: dict[str, Any], measure: str
) -> list[dict[str, Any]]:
    """One row a cell from the rows of ablation.csv that finished.

    A cell's differences are to the cell that has the settings of `baseline` and is like it in all
    others, paired by seed: the same initial weights, data order and split. `resolved` is whether
    the interval leaves 0 out; empty where there is no interval.
    """
    cells: dict[tuple[str, ...], dict[int, float]] = {}
    for row in rows:
        found = cells.setdefault(tuple(str(row[axis]) for axis in axes), {})
        if row["state"] == "finished" and row[measure] not in (None, ""):
            found[int(row["seed"])] = float(row[measure])
    summary = []
    for key, found in cells.items():
        settings = dict(zip(axes, key, strict=True))
        base_key = tuple(str(baseline.get(axis, settings[axis])) for axis in axes)
        statistic = _statistics(found, cells.get(base_key, {}), key == base_key)
        summary.append({**settings, "measure": measure, **statistic})
    return summary


def _statistics(found: dict[int, float], base: dict[int, float], is_base: bool) -> dict[str, Any]:
    values = list(found.values())
    shared = sorted(found.keys() & base.keys())
    differences = [] if is_base else [found[seed] - base[seed] for seed in shared]
    reach = interval(differences)
    return {
        "n": len(values),
        "accuracy_mean": statistics.fmean(values) if values else None,
        "accuracy_std": statistics.stdev(values) if len(values) > 1 else None,
        "baseline": int(is_base),
        "difference_mean": statistics.fmean(differences) if differences else None,
        "difference_low": reach[0] if reach else None,
        "difference_high": reach[1] if reach else None,
        "pairs": len(differences),
        "resolved": None if reach is None else int(not reach[0] <= 0.0 <= reach[1]),
    }


def summary_csv(path: Path, summary: Sequence[dict[str, Any]], axes: Sequence[str]) -> None:
    """summary.csv: a row a cell. Accuracies and differences are fractions. Raises RunError."""
    write_csv(path, summary, [*axes, *STATISTICS])


def _points(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def table(
    title: str, summary: Sequence[dict[str, Any]], axes: Sequence[str], names: Sequence[str]
) -> Table:
    """A line a cell, in points of percent; a difference whose interval holds 0 is "not resolved".

    Numbers are never cut: on a narrow terminal the settings are folded.
    """
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in names:
        shown.add_column(name, overflow="fold")
    for name in ("n", "accuracy %", "difference", "95 % interval"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in summary:
        settings = [str(row[axis]) for axis in axes]
        shown.add_row(*settings, str(row["n"]), _accuracy(row), _difference(row), _interval(row))
    return shown


def _accuracy(row: dict[str, Any]) -> str:
    spread = row["accuracy_std"]
    return _points(row["accuracy_mean"]) + ("" if spread is None else f" ± {_points(spread)}")


def _difference(row: dict[str, Any]) -> str:
    if row["baseline"]:
        return "baseline"
    return "not resolved" if row["resolved"] == 0 else _points(row["difference_mean"], "+")


def _interval(row: dict[str, Any]) -> str:
    low, high = row["difference_low"], row["difference_high"]
    return "" if low is None else f"{_points(low, '+')} .. {_points(high, '+')}"
