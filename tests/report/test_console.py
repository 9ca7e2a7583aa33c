"""Tables and sentences on the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tser_cli.report.words import bar, next_steps, per_timestep_table, percent, summary


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


def test_the_table_has_a_line_a_step() -> None:
    text = printed(per_timestep_table("my run", rows()))
    assert text[0].startswith("my run")
    numbers = [line.split() for line in text if line.strip().startswith(("1", "2"))]
    assert numbers[0][:8] == ["1", "91.01", "%", "92.02", "%", "0.123", "0.568", "0.988"]
    assert numbers[1][:8] == ["2", "92.02", "%", "94.04", "%", "0.123", "0.568", "0.988"]
    assert not any("teacher" in line for line in text)


def test_the_teacher_stands_on_the_last_line() -> None:
    text = [
        line for line in printed(per_timestep_table("my run", rows(teacher=0.97))) if line.strip()
    ]
    assert text[-1].split()[:3] == ["teacher", "97.00", "%"]


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_an_ordinary_terminal(width: int) -> None:
    text = printed(per_timestep_table("my run", rows(teacher=0.97, steps=6)), width)
    assert all(len(line) <= width for line in text)
    assert not any("…" in line for line in text)


def test_the_summary_tells_the_gap_to_the_teacher() -> None:
    expected = "accuracy 94.04 % of 360 test images after 2 time steps"
    assert summary(rows(), "test") == expected
    assert summary(rows(teacher=0.97), "test") == f"{expected}; teacher 97.00 % (-2.96 points)"
    assert summary(rows(teacher=0.9), "test").endswith("(+4.04 points)")


def test_one_step_is_not_mentioned() -> None:
    assert summary(rows(steps=1), "validation") == "accuracy 92.02 % of 360 validation images"


def test_what_to_type_next() -> None:
    text = next_steps(Path("runs/x"), ["tser evaluate", "tser energy report.csv"])
    assert text == "run folder: runs/x\nnext:\n  tser evaluate\n  tser energy report.csv"
