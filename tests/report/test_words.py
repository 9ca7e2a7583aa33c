"""Tables and sentences on the terminal: ranges, not one favourable number."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tser_cli.report.words import (
    bar,
    headline,
    meaning_sentences,
    next_steps,
    per_timestep_table,
    percent,
    summary,
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


def test_the_summary_tells_the_gap_to_the_teacher() -> None:
    expected = "accuracy 94.04 % of 360 test images after 2 time steps"
    assert summary(rows(), "test") == expected
    assert summary(rows(teacher=0.97), "test") == f"{expected}; teacher 97.00 % (-2.96 points)"
    assert summary(rows(teacher=0.9), "test").endswith("(+4.04 points)")
    assert summary(rows(steps=1), "validation") == "accuracy 92.02 % of 360 validation images"


def test_what_to_type_next() -> None:
    text = next_steps(Path("runs/x"), ["tser evaluate", "tser energy report.csv"])
    assert text == "run folder: runs/x\nnext:\n  tser evaluate\n  tser energy report.csv"


def test_what_the_figures_of_a_training_mean() -> None:
    right = "It is right about {} of 360 images that it was never trained on"
    assert meaning_sentences("student", rows(0.7)) == [
        f"{right.format(339)} (328 by its first time step alone), its teacher about 252."
    ]
    first, second = meaning_sentences("teacher", rows(steps=1))
    assert first == f"{right.format(331)}."
    assert second == "A student learns from its answers, and is compared with them."


def against(**changes: Any) -> dict[str, Any]:
    cases = {
        "same": {"snn_pj": 8e6, "ann_pj": 88e6},
        "skipping": {"snn_pj": 8e6, "ann_pj": 44e6, "skipped": 0.5},
        "memory": {"snn_pj": 4e8, "ann_pj": 8e8},
        "int8": {"snn_pj": 8e6, "ann_pj": 4e6},
    }
    plain = {"assumptions": cases, "steps_pj": [3e6, 6e6, 8e6], "accuracy": []}
    return {**plain, **changes}


def test_the_range_and_what_makes_it() -> None:
    assert headline(against()) == [
        "One image costs 8 µJ: from 11.0 times less to 2.0 times more than the ANN of the same "
        "shape.",
        "That is 11.0 times less than its 88 µJ in the same arithmetic, 5.5 times less if it skips "
        "its zeros (50 %, as in the teacher), 2.0 times less with memory traffic, 2.0 times more "
        "than its 4 µJ in 8-bit integers.",
    ]


def test_one_assumption_is_no_range() -> None:
    alone = {"same": {"snn_pj": 8e6, "ann_pj": 4e6}}
    assert headline(against(assumptions=alone)) == [
        "One image costs 8 µJ: 2.0 times more than the ANN of the same shape.",
        "That is 2.0 times more than its 4 µJ in the same arithmetic.",
    ]


@pytest.mark.parametrize("ann_pj", [8e6, 0.0])
def test_an_ann_is_not_compared_with_itself(ann_pj: float) -> None:
    itself = {"same": {"snn_pj": ann_pj, "ann_pj": 8e6}}
    (line,) = headline(against(assumptions=itself))
    assert line == ("One image costs 8 µJ." if ann_pj else "One image costs 0 pJ.")


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ([0.896, 0.899, 0.9], "t = 1 alone has 89.60 % for 3 µJ; all steps 90.00 %."),
        ([0.89, 0.91, 0.9], "t = 1..2 have 91.00 % for 6 µJ; all steps 90.00 %."),
        ([0.89, 0.894, 0.9], None),
        ([0.9], None),
        ([], None),
    ],
)
def test_fewer_steps_are_told_where_they_are_about_as_good(
    accuracy: list[float], said: str | None
) -> None:
    assert headline(against(accuracy=accuracy))[2:] == ([] if said is None else [said])


def test_how_energies_compare() -> None:
    assert [times(r) for r in (3.14, 1.0, 0.5)] == [
        *("3.1 times less", "1.0 times less", "2.0 times more")
    ]
