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
    fitting,
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59, "59 s"), (200, "3 min"), (7200, "2 h"), (90000, "1 d"), (1e8, "1,157 d")],
)
def test_an_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1,023 B"), (3 * 2**20, "3 MiB"), (2**45, "32 TiB")]
)
def test_a_size(count: int, text: str) -> None:
    assert size(count) == text


def test_a_wide_list_has_all_columns() -> None:
    head, _, student, teacher = drawn(listing(columns(STUDENT, TEACHER), None), 200)
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
    lines = drawn(listing(columns(STUDENT), 80), 80)
    assert lines[0].split() == ["run", "state", "accuracy", "energy", "age"]
    assert STUDENT["run"] in lines[2]
    told = " ".join(" ".join(lines[3:]).split())
    assert told.startswith("no room for: kind, data set, teacher, student, T, method, seed, size")


@pytest.mark.parametrize("width", range(50, 180, 3))
def test_what_has_room_is_whole(width: int) -> None:
    name = "resnet18_T2_tser_50pct_s0_20250131-120000"
    lines = drawn(listing(columns({**STUDENT, "run": name}, TEACHER), width), width)
    assert name in lines[2] and STUDENT["run"] in lines[3]
    assert "…" not in "".join(lines)


def test_the_run_is_always_there() -> None:
    cells = {"run": ["x" * 50], "state": ["finished"]}
    assert fitting({**cells, "accuracy": [""]}, 40) == ["run"]


def test_names_from_anybody_are_one_short_line() -> None:
    odd = ("[red]x[/red]", "a\nb", "\x1b[2J", "\u202egnp", "x" * 10_000, "a\tb", "<script>")
    rows = [{**STUDENT, "run": name, "data set": name, "method": name} for name in odd]
    lines = drawn(listing(columns(*rows), None), 600)
    assert len(lines) == 2 + len(odd)
    assert "[red]x[/red]" in lines[2] and "a\\nb" in lines[3] and "\\x1b[2J" in lines[4]
    assert "\\u202egnp" in lines[5] and "(9,940 more characters)" in lines[6]


def test_letters() -> None:
    assert letters(3) == ["A", "B", "C"]
    assert letters(28)[24:] == ["Y", "Z", "A1", "B1"]
    assert len(set(letters(100))) == 100


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
    mean: float,
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


def rendered(of: list[CellStatistics], names: list[str], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(ablation_table("rivals: accuracy", of, names))
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
        cell("kd", 0.912, 0.01304, is_baseline=True, pairs=0),
        cell("ts", 0.936, 0.01517, 0.024, 0.0172, 0.0308, resolved=True),
        cell("tser", 0.914, 0.0114, 0.002, -0.0084, 0.0124, resolved=False),
    ]
    shown = rendered(summary, ["method"])
    lines = [[word.strip() for word in line] for line in lines_of(shown)]
    assert lines == [
        ["kd", "5", "91.20 ± 1.30", "baseline"],
        ["ts", "5", "93.60 ± 1.52", "+2.40", "+1.72 .. +3.08"],
        ["tser", "5", "91.40 ± 1.14", "not resolved", "-0.84 .. +1.24"],
    ]


@pytest.mark.parametrize("names", [["method"], ["method", "timesteps", "entropy_weight"]])
def test_nothing_is_cut_off_at_80_columns(names: list[str]) -> None:
    found = CellStatistics(
        dict.fromkeys(names, "kd_feature_and_much_more"),
        *("accuracy", 10, 1.0, 0.1234, False, 10, -0.1, (-0.2111, 0.1999), False),
    )
    shown = rendered([found], names)
    assert "…" not in shown
    for text in ("100.00 ± 12.34", "not resolved", "-21.11 .. +19.99", "95 % interval"):
        assert text in shown
    for name in names:
        assert name[:4] in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_star_where_only_the_plain_interval_leaves_zero_out() -> None:
    rows = [
        cell("kd", 0.9, is_baseline=True),
        cell("ts", 0.92, 0.01, 0.02, 0.001, 0.039, resolved=True, resolved_holm=False),
        cell("ce", 0.8, 0.01, -0.1, -0.12, -0.08, resolved=True, resolved_holm=True),
    ]
    shown = rendered(rows, ["method"])
    assert "+2.00 *" in shown
    assert "-10.00 *" not in shown
    assert "* not resolved by Holm's procedure over this table" in shown
    assert "Holm" not in rendered(rows[2:], ["method"])


def test_a_cell_without_an_interval_is_shown_too() -> None:
    one = [cell("kd", 0.9, n=1, is_baseline=True), cell("ts", 0.92, None, 0.02, n=1, pairs=1)]
    assert "+2.00" in rendered(one, ["method"])
    nothing = [
        CellStatistics({"method.name": method}, "accuracy", 0, None, None)
        for method in ("kd", "ts", "tser")
    ]
    assert rendered(nothing, ["method"]).count(" 0 ") == 3
