"""Tables and sentences on the terminal: ranges, not one favourable number."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tser_cli.report.words import (
    bar,
    compare,
    counted,
    leaves_out,
    next_steps,
    per_timestep_table,
    percent,
    table,
    times,
)


def rows(teacher: float | None = None, steps: int = 2) -> list[dict[str, Any]]:
    return [
        {
            "timesteps": steps,
            "t": t,
            "accuracy_at_t": 0.9 + 0.0101 * t,
            "accuracy_cumulative": 0.9 + 0.0202 * t,
            "images": 360,
            "loss_at_t": 0.12345,
            "entropy_at_t": 0.56789,
            "confidence_at_t": 0.98765,
            "teacher_accuracy": teacher,
        }
        for t in range(1, steps + 1)
    ]


def printed(thing: Any, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(thing)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.9534, "95.34 %"), (1.0, "100.00 %"), (0.0, "0.00 %"), (None, "-")]
)
def test_percent(fraction: float | None, text: str) -> None:
    assert percent(fraction) == text


@pytest.mark.parametrize(
    ("fraction", "length"), [(0.0, 0), (0.24, 2), (0.26, 3), (1.0, 10), (1.5, 10), (-0.5, 0)]
)
def test_a_bar_is_as_long_as_its_fraction(fraction: float, length: int) -> None:
    assert bar(fraction) == "█" * length


def test_the_table_has_a_line_a_step_and_the_teacher_on_the_last() -> None:
    text = printed(per_timestep_table("my run", rows(teacher=0.97, steps=6)))
    assert text[0].startswith("my run")
    numbers = [line.split()[:8] for line in text if line.strip().startswith(("1", "2"))]
    assert numbers == [
        ["1", "91.01", "%", "92.02", "%", "0.123", "0.568", "0.988"],
        ["2", "92.02", "%", "94.04", "%", "0.123", "0.568", "0.988"],
    ]
    assert [line for line in text if line.strip()][-1].split()[:3] == ["teacher", "97.00", "%"]
    assert all(len(line) <= 80 and "…" not in line for line in text)
    assert not any("teacher" in line for line in printed(per_timestep_table("my run", rows())))


def test_what_to_type_next() -> None:
    text = next_steps(Path("runs/x"), ["tser evaluate", "tser energy report.csv"])
    assert text == "run folder: runs/x\nnext:\n  tser evaluate\n  tser energy report.csv"


def test_how_energies_compare() -> None:
    assert [times(r) for r in (3.14, 1.02, 0.98, 0.5)] == [
        *("3.1 times less", "about as much", "about as much", "2.0 times more")
    ]
    assert [compare(2.0, other) for other in (8.0, 2.0)] == [
        *("4.0 times less than", "about as much as")
    ]


def test_the_grammar_of_numbers() -> None:
    assert [counted(n, "epoch") for n in (0, 1, 1437)] == ["0 epochs", "1 epoch", "1,437 epochs"]


def test_a_narrow_table_keeps_the_names_and_says_what_it_leaves_out() -> None:
    row = {"op": "AC", "t": "all", "firing_rate": 0.2, "sop_value": 5e4, "macs": 0}
    row |= {"energy_pj": 4e4, "ann_energy_pj": 5e5}
    layers = [{**row, "layer": name} for name in ("layer2.0.downsample.0", "TOTAL")]
    lines = printed(table("my run", layers), width=40)
    assert all(len(line) <= 40 for line in lines)
    (shown,) = [line.split() for line in lines if "downsample" in line]
    assert shown == ["layer2.0.downsample.0", "40", "nJ"]
    assert "no room for: op, rate, ops, ANN, share" in " ".join(" ".join(lines).split())
    assert "█" in "".join(printed(table("my run", layers), width=90))


@pytest.mark.parametrize(
    ("name", "said"),
    [("mul", True), ("index_add", True), ("scatter_add", True), ("add", False), ("mean", False)],
)
def test_what_nobody_counts_makes_no_lower_bound(name: str, said: bool) -> None:
    document = {"network": {"uncounted_share_of_flop": {name: 0.3}}}
    assert leaves_out(document) is said
