"""What the figures of a training mean, in words."""

from __future__ import annotations

from typing import Any

from tser_cli.report.words import meaning_sentences


def rows(steps: int, teacher: float | None = None) -> list[dict[str, Any]]:
    of_all = {"images": 2000, "teacher_accuracy": teacher}
    return [
        {**of_all, "accuracy_at_t": 0.5 + t / 1000, "accuracy_cumulative": 0.6 + t / 1000}
        for t in range(1, steps + 1)
    ]


def test_a_student() -> None:
    assert meaning_sentences("student", rows(2, 0.7)) == [
        "It is right about 1,204 of 2,000 images that it was never trained on (1,002 by its first "
        "time step alone), its teacher about 1,400."
    ]


def test_a_student_of_one_step_without_a_teacher() -> None:
    assert meaning_sentences("student", rows(1)) == [
        "It is right about 1,202 of 2,000 images that it was never trained on."
    ]


def test_a_teacher() -> None:
    first, second = meaning_sentences("teacher", rows(1))
    assert first.startswith("It is right about 1,202 of 2,000")
    assert second == "A student learns from its answers, and is compared with them."
