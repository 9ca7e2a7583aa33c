"""The tables of runs: widths, units, and names from anybody."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tser_cli.report.lists import age, figures, fitting, letters, listing, side_by_side, size

ROW: dict[str, Any] = {
    "name": "resnet18_T2_tser_s0_20250131-120000",
    "kind": "student",
    "dataset": "digits",
    "teacher": "resnet34",
    "student": "resnet18",
    "timesteps": 2,
    "method": "tser",
    "seed": 0,
    "state": "finished",
    "accuracy": 0.975,
    "energy_pj": 8.13e6,
    "when": 1000.0,
    "size": 3 * 2**20,
}
TEACHER = dict.fromkeys(("student", "timesteps", "method", "energy_pj", "accuracy"))


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
    head, _, student, teacher = drawn(listing([ROW, {**ROW, **TEACHER}], 1060.0, None), 200)
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
    lines = drawn(listing([ROW], 1060.0, 80), 80)
    assert lines[0].split() == ["run", "state", "accuracy", "energy", "age"]
    assert ROW["name"] in lines[2]
    told = " ".join(" ".join(lines[3:]).split())
    assert told.startswith("no room for: kind, data set, teacher, student, T, method, seed, size")


@pytest.mark.parametrize("width", range(50, 180))
def test_what_has_room_is_whole(width: int) -> None:
    rows = [{**ROW, "name": "resnet18_T2_tser_50pct_s0_20250131-120000"}, {**ROW, **TEACHER}]
    lines = drawn(listing(rows, 1060.0, width), width)
    assert rows[0]["name"] in lines[2] and ROW["name"] in lines[3]
    assert "…" not in "".join(lines)


def test_the_run_is_always_there() -> None:
    cells = {"run": ["x" * 50], "state": ["finished"]}
    assert fitting({**cells, "accuracy": [""]}, 40) == ["run"]


def test_names_from_anybody_are_one_short_line() -> None:
    odd = ("[red]x[/red]", "a\nb", "\x1b[2J", "\u202egnp", "x" * 10_000, "a\tb", "<script>")
    rows = [{**ROW, "name": name, "dataset": name, "method": name} for name in odd]
    lines = drawn(listing(rows, 1060.0, None), 600)
    assert len(lines) == 2 + len(odd)
    assert "[red]x[/red]" in lines[2] and "a\\nb" in lines[3] and "\\x1b[2J" in lines[4]
    assert "\\u202egnp" in lines[5] and "(9,940 more characters)" in lines[6]


def test_letters() -> None:
    assert letters(3) == ["A", "B", "C"]
    assert letters(28)[24:] == ["Y", "Z", "A1", "B1"]
    assert len(set(letters(100))) == 100


def test_results_by_hand() -> None:
    first = {"entry": ROW, "low": 0.95, "high": 0.99, "difference": None, "p_value": None}
    other = {**first, "entry": {**ROW, **TEACHER}, "low": None, "difference": -0.0123}
    lines = drawn(figures([first, {**other, "p_value": 0.0307}]), 100)
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
