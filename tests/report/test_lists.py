"""The tables of runs and of ablations: widths, units, and names from anybody."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tser_cli.report.comparison import CellStatistics, RunFigures
from tser_cli.report.lists import (
    ablation_table,
    age,
    figures,
    letters,
    listing,
    side_by_side,
    size,
)

STUDENT: dict[str, Any] = {
    "run": "resnet18_T2_tser_s0_20250131-120000",
    **{"kind": "student", "data set": "digits", "teacher": "resnet34", "student": "resnet18"},
    **{"T": 2, "method": "tser", "seed": 0, "state": "finished", "accuracy": 0.975},
    **{"energy": 8.13e6, "age": 60.0, "size": 3 * 2**20},
}
TEACHER = {**STUDENT, **dict.fromkeys(("student", "T", "method", "energy", "accuracy"))}


def columns(*rows: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in STUDENT}


def drawn(table: Any, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in lines)
    return [line for line in lines if line.strip()]


def test_a_wide_list_has_all_columns() -> None:
    head, _, student, teacher = drawn(listing(columns(STUDENT, TEACHER)), 200)
    assert head.split() == [
        *("run", "kind", "data", "set", "teacher", "student", "T", "method", "seed"),
        *("state", "accuracy", "energy", "age", "size"),
    ]
    assert student.split() == [
        *("resnet18_T2_tser_s0_20250131-120000", "student", "digits", "resnet34", "resnet18"),
        *("2", "tser", "0", "finished", "97.50", "%", "8.13", "µJ", "1", "min", "3", "MiB"),
    ]
    assert teacher.split().count("-") == 5


def test_a_narrow_list_names_what_is_left_out() -> None:
    lines = drawn(listing(columns(STUDENT)), 80)
    assert lines[0].split() == ["run", "state", "accuracy", "energy", "age"]
    assert STUDENT["run"] in lines[2]
    told = " ".join(" ".join(lines[3:]).split())
    assert told.startswith("no room for: kind, data set, teacher, student, T, method, seed, size")


@pytest.mark.parametrize("width", range(50, 180, 13))
def test_what_has_room_is_whole(width: int) -> None:
    name = "resnet18_T2_tser_50pct_s0_20250131-120000"
    lines = drawn(listing(columns({**STUDENT, "run": name}, TEACHER)), width)
    assert name in lines[2] and STUDENT["run"] in lines[3]
    assert "…" not in "".join(lines)
    # the name is always there, folded where it must be
    cells = {"run": ["x" * 50], "state": ["finished"], "accuracy": [None]}
    assert "".join(line.strip() for line in drawn(listing(cells), 40)[2:4]) == "x" * 50


def test_names_from_anybody_are_one_short_line() -> None:
    odd = ("[red]x[/red]", "a\nb", "\x1b[2J", "\u202egnp", "x" * 10_000, "a\tb", "<script>")
    rows = [{**STUDENT, "run": name, "data set": name, "method": name} for name in odd]
    lines = drawn(listing(columns(*rows)), 600)
    assert len(lines) == 2 + len(odd)
    assert "[red]x[/red]" in lines[2] and "a\\nb" in lines[3] and "\\x1b[2J" in lines[4]
    assert "\\u202egnp" in lines[5] and "(9,940 more characters)" in lines[6]


def test_letters_ages_and_sizes() -> None:
    assert letters(28)[:2] + letters(28)[24:] == ["A", "B", "Y", "Z", "A1", "B1"]
    assert len(set(letters(100))) == 100
    seconds = (-5, 59, 200, 7200, 90000, 1e8)
    assert list(map(age, seconds)) == ["0 s", "59 s", "3 min", "2 h", "1 d", "1,157 d"]
    assert list(map(size, (0, 1023, 3 * 2**20, 2**45))) == ["0 B", "1,023 B", "3 MiB", "32 TiB"]


def test_results_by_hand() -> None:
    first = RunFigures("finished", 0.975, 8.13e6, 360, 0.95, 0.99)
    other = RunFigures("finished", None, None, difference=-0.0123, p_value=0.0307)
    lines = drawn(figures([first, other]), 100)
    assert lines[-2].split() == [
        *("A", "finished", "97.50", "%", "95.00", "..", "99.00", "8.13", "µJ"),
    ]
    assert lines[-1].split() == ["B", "finished", "-", "-", "-", "-1.23", "0.031"]


def test_settings_side_by_side() -> None:
    pairs = [("optimizer.lr", (0.1, None)), ("model.teacher", ("", "[x]\n"))]
    lines = drawn(side_by_side("settings that differ", pairs), 60)
    assert lines[0].strip() == "settings that differ"
    assert lines[1].split() == ["A", "B"]
    assert lines[-2].split() == ["optimizer.lr", "0.1", "-"]
    assert lines[-1].split() == ["model.teacher", '""', "[x]\\n"]


def cell(
    method: str,
    mean: float | None,
    std: float | None = None,
    difference: float | None = None,
    *interval: float,
    **more: Any,
) -> CellStatistics:
    values = {"n": 5, "pairs": 5, **more}
    reach: Any = interval or None
    settings = {"method.name": method}
    return CellStatistics(
        settings, "accuracy", mean=mean, std=std, difference=difference, interval=reach, **values
    )


def test_the_table_says_what_is_resolved() -> None:
    summary = [
        cell("kd", 0.912, 0.01304, is_baseline=True, pairs=0),
        cell("ts", 0.936, 0.01517, 0.024, 0.0172, 0.0308, resolved=True),
        cell("tser", 0.914, 0.0114, 0.002, -0.0084, 0.0124, resolved=False),
        cell("ce", 0.92, 0.01, 0.008, 0.001, 0.015, resolved=True, resolved_holm=False),
        cell("seal", 0.8, None, -0.1, n=1, pairs=1),
        cell("tsd", None, n=0),
    ]
    shown = drawn(ablation_table("rivals: accuracy", summary, ["method"]), 80)
    lines = [[word.strip() for word in line.split("  ") if word.strip()] for line in shown]
    assert lines[3:9] == [
        ["kd", "5", "91.20 ± 1.30", "baseline"],
        ["ts", "5", "93.60 ± 1.52", "+2.40", "+1.72 .. +3.08"],
        ["tser", "5", "91.40 ± 1.14", "not resolved", "-0.84 .. +1.24"],
        ["ce", "5", "92.00 ± 1.00", "+0.80 *", "+0.10 .. +1.50"],
        ["seal", "1", "80.00", "-10.00"],
        ["tsd", "0", "-", "-"],
    ]
    # a star where only the plain interval leaves zero out
    star = "* not resolved by Holm's procedure over this table"
    assert shown[9].strip() == star
    assert not any("Holm" in line for line in drawn(ablation_table("", summary[4:], ["m"]), 80))


@pytest.mark.parametrize("names", [["method"], ["method", "timesteps", "entropy_weight"]])
def test_nothing_is_cut_off_at_80_columns(names: list[str]) -> None:
    found = CellStatistics(
        dict.fromkeys(names, "kd_feature_and_much_more"),
        *("accuracy", 10, 1.0, 0.1234, False, 10, -0.1, (-0.2111, 0.1999), False),
    )
    lines = drawn(ablation_table("rivals: accuracy", [found], names), 80)
    shown = "\n".join(lines)
    assert "…" not in shown
    for text in ("100.00 ± 12.34", "not resolved", "-21.11 .. +19.99", "95 % interval"):
        assert text in shown
    assert all(name[:4] in shown for name in names)
