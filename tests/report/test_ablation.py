"""The table of an ablation on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tser_cli.report.lists import ablation_table

NUMBERS = ("accuracy_mean", "accuracy_std", "difference_mean", "difference_low", "difference_high")


def line(method: str, *numbers: float | None, **changes: Any) -> dict[str, Any]:
    """A row of summary.csv."""
    values = dict(zip(NUMBERS, numbers, strict=False))
    row = {"method.name": method, "n": 5, "baseline": 0, "pairs": 5}
    row |= {"resolved": None, "resolved_holm": None}
    return {**row, **dict.fromkeys(NUMBERS), **values, **changes}


def rendered(of: list[dict[str, Any]], axes: list[str], names: list[str], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(ablation_table("rivals: accuracy", of, axes, names))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines_of(shown: str) -> list[list[str]]:
    """The cells of the table's lines: columns are two blanks apart."""
    return [
        [cell for cell in line.strip().split("  ") if cell]
        for line in shown.splitlines()
        if "±" in line
    ]


def test_the_table_says_what_is_resolved() -> None:
    summary = [
        line("kd", 0.912, 0.01304, baseline=1, pairs=0),
        line("ts", 0.936, 0.01517, 0.024, 0.0172, 0.0308, resolved=1),
        line("tser", 0.914, 0.0114, 0.002, -0.0084, 0.0124, resolved=0),
    ]
    shown = rendered(summary, ["method.name"], ["method"])
    cells = [[cell.strip() for cell in line] for line in lines_of(shown)]
    assert cells == [
        ["kd", "5", "91.20 ± 1.30", "baseline"],
        ["ts", "5", "93.60 ± 1.52", "+2.40", "+1.72 .. +3.08"],
        ["tser", "5", "91.40 ± 1.14", "not resolved", "-0.84 .. +1.24"],
    ]


@pytest.mark.parametrize("names", [["method"], ["method", "timesteps", "entropy_weight"]])
def test_nothing_is_cut_off_at_80_columns(names: list[str]) -> None:
    row = {
        **dict.fromkeys(names, "kd_feature_and_much_more"),
        **{"n": 10, "accuracy_mean": 1.0, "accuracy_std": 0.1234, "baseline": 0, "pairs": 10},
        **{"difference_mean": -0.1, "difference_low": -0.2111, "difference_high": 0.1999},
        **{"resolved": 0, "resolved_holm": 0},
    }
    shown = rendered([row], names, names)
    assert "…" not in shown
    for text in ("100.00 ± 12.34", "not resolved", "-21.11 .. +19.99", "95 % interval"):
        assert text in shown
    for name in names:
        assert name[:4] in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_star_where_only_the_plain_interval_leaves_zero_out() -> None:
    rows = [
        line("kd", 0.9, baseline=1),
        line("ts", 0.92, 0.01, 0.02, 0.001, 0.039, resolved=1, resolved_holm=0),
        line("ce", 0.8, 0.01, -0.1, -0.12, -0.08, resolved=1, resolved_holm=1),
    ]
    shown = rendered(rows, ["method.name"], ["method"])
    assert "+2.00 *" in shown
    assert "-10.00 *" not in shown
    assert "* not resolved by Holm's procedure over this table" in shown
    assert "Holm" not in rendered(rows[2:], ["method.name"], ["method"])


def test_a_cell_without_an_interval_is_shown_too() -> None:
    one = [line("kd", 0.9, n=1, baseline=1), line("ts", 0.92, None, 0.02, n=1, pairs=1)]
    assert "+2.00" in rendered(one, ["method.name"], ["method"])
    nothing = [line(method, n=0, pairs=0) for method in ("kd", "ts", "tser")]
    assert rendered(nothing, ["method.name"], ["method"]).count(" 0 ") == 3
