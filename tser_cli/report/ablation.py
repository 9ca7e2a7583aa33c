"""The table of an ablation on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


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
        shown.caption = "* not resolved by Holm's procedure over this table"
    for name in names:
        shown.add_column(name, overflow="fold")
    for name in ("n", "accuracy %", "difference", "95 % interval"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in summary:
        settings = [str(row[axis]) for axis in axes]
        shown.add_row(*settings, str(row["n"]), _accuracy(row), _difference(row), _interval(row))
    return shown


def starred(row: Mapping[str, Any]) -> bool:
    """Return whether a difference is resolved by itself, but not by Holm's procedure."""
    return bool(row["resolved"] == 1 and row["resolved_holm"] == 0)


def _accuracy(row: dict[str, Any]) -> str:
    spread = row["accuracy_std"]
    return _points(row["accuracy_mean"]) + ("" if spread is None else f" ± {_points(spread)}")


def _difference(row: dict[str, Any]) -> str:
    if row["baseline"]:
        return "baseline"
    if row["resolved"] == 0:
        return "not resolved"
    return _points(row["difference_mean"], "+") + (" *" if starred(row) else "")


def _interval(row: dict[str, Any]) -> str:
    low, high = row["difference_low"], row["difference_high"]
    return "" if low is None else f"{_points(low, '+')} .. {_points(high, '+')}"
