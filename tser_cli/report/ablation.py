"""The table of an ablation on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tser_cli.quantities import unit_of

STAR = "* not resolved by Holm's procedure over this table"


def _points(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def table(
    title: str, summary: Sequence[dict[str, Any]], axes: Sequence[str], names: Sequence[str]
) -> Table:
    """Return a line a cell, in points of percent.

    A difference whose interval holds 0 is "not resolved"; one that is resolved by itself, but not
    among all comparisons of the table, has a star. Numbers are never cut: on a narrow terminal the
    settings are folded.
    """
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, caption_justify="left")
    if any(starred(row) for row in summary):
        shown.caption = STAR
    for name in names:
        shown.add_column(name, overflow="fold")
    for name in ("n", "accuracy %", "difference", "95 % interval"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in summary:
        settings = [str(row[axis]) for axis in axes]
        shown.add_row(
            *settings,
            str(row["n"]),
            accuracy_words(row),
            difference_words(row),
            interval_words(row),
        )
    return shown


def exits_table(
    summary: Sequence[dict[str, Any]], axes: Sequence[str], names: Sequence[str], margin: float
) -> Table:
    """Return a line a cell: the energy at which early exit reaches the baseline's accuracy."""
    title = f"early exit at the accuracy of the baseline less {100 * margin:g} points"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, caption_justify="left")
    shown.caption = "thresholds chosen on held-out images, measured on test images"
    if any(starred(row) for row in summary):
        shown.caption = f"{shown.caption}\n{STAR}"
    for name in names:
        shown.add_column(name, overflow="fold")
    found = [row["energy_mean_pj"] for row in summary if row["energy_mean_pj"] is not None]
    scale, unit = unit_of(max(found, default=0.0))
    for name in ("n", f"energy {unit}", "accuracy %", "difference", "95 % interval"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in summary:
        settings = [str(row[axis]) for axis in axes]
        tried = f" of {row['n'] + row['missed']}" if row["missed"] else ""
        energy = _in_unit(row["energy_mean_pj"], scale)
        if row["energy_std_pj"] is not None:
            energy += f" ± {_in_unit(row['energy_std_pj'], scale)}"
        shown.add_row(
            *settings,
            f"{row['n']}{tried}",
            energy,
            accuracy_words(row),
            *_energy_difference(row, scale),
        )
    return shown


def _in_unit(energy_pj: float | None, scale: float, sign: str = "") -> str:
    return "-" if energy_pj is None else f"{energy_pj / scale:{sign}.2f}"


def _energy_difference(row: Mapping[str, Any], scale: float) -> tuple[str, str]:
    if row["baseline"]:
        return "baseline", ""
    low, high = row["energy_difference_low_pj"], row["energy_difference_high_pj"]
    reach = "" if low is None else f"{_in_unit(low, scale, '+')} .. {_in_unit(high, scale, '+')}"
    if row["resolved"] == 0:
        return "not resolved", reach
    star = " *" if starred(row) else ""
    return _in_unit(row["energy_difference_pj"], scale, "+") + star, reach


def starred(row: Mapping[str, Any]) -> bool:
    """Return whether a difference is resolved by itself, but not by Holm's procedure."""
    return bool(row["resolved"] == 1 and row["resolved_holm"] == 0)


def accuracy_words(row: Mapping[str, Any]) -> str:
    """Return mean and deviation of a cell in percent: "91.24 ± 0.28"."""
    spread = row["accuracy_std"]
    return _points(row["accuracy_mean"]) + ("" if spread is None else f" ± {_points(spread)}")


def difference_words(row: Mapping[str, Any]) -> str:
    """Return the difference to the baseline in points, or what stands in its way."""
    if row["baseline"]:
        return "baseline"
    if row["resolved"] == 0:
        return "not resolved"
    return _points(row["difference_mean"], "+") + (" *" if starred(row) else "")


def interval_words(row: Mapping[str, Any], of: str = "difference") -> str:
    """Return the interval of the difference in points: over seeds, or "two_way", images too."""
    low, high = row[f"{of}_low"], row[f"{of}_high"]
    return "" if low is None else f"{_points(low, '+')} .. {_points(high, '+')}"
