"""What the figures of a training mean, in words."""

from __future__ import annotations

from typing import Any

import pytest

from tser_cli.report.meaning import sentences


def rows(steps: int, teacher: float | None = None) -> list[dict[str, Any]]:
    of_all = {"images": 2000, "teacher_accuracy": teacher}
    return [
        {**of_all, "accuracy_at_t": 0.5 + t / 1000, "accuracy_cumulative": 0.6 + t / 1000}
        for t in range(1, steps + 1)
    ]


def test_a_student() -> None:
    first, second = sentences("student", rows(2, 0.7), 2.0e6, 8.2e6)
    assert first == (
        "It is right about 1,204 of 2,000 images that it was never trained on (1,002 by its first "
        "time step alone), its teacher about 1,400."
    )
    assert second == (
        "An image costs it 2 µJ, 4.1 times less than the same network with ordinary activations "
        "(arithmetic alone, without memory)."
    )


def test_a_student_that_costs_more() -> None:
    assert "2.0 times more than" in sentences("student", rows(1), 8.0, 4.0)[1]


@pytest.mark.parametrize("energies", [(None, None), (1.0, None), (1.0, 0.0)])
def test_no_energy(energies: tuple[float | None, float | None]) -> None:
    first, second = sentences("student", rows(1), *energies)
    assert first == "It is right about 1,202 of 2,000 images that it was never trained on."
    assert second.startswith("No test image chose anything")


def test_a_teacher() -> None:
    first, second = sentences("teacher", rows(1), None, None)
    assert first.startswith("It is right about 1,202 of 2,000")
    assert second == "A student learns from its answers, and is compared with them."
