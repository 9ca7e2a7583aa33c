"""The verdict: whether a network learned, how it stands to its teacher, and no ratio without it."""

from __future__ import annotations

from typing import Any

import pytest

from tser_cli.report.verdict import verdict

GUESSING = "not better than guessing (the largest class is 25.00 % of them)"
RIGHT = "90.00 % (90 of 100 test images right)"


def row(right: int = 90, **changes: Any) -> dict[str, Any]:
    plain = {"correct_cumulative": right, "images": 100, "teacher_accuracy": None}
    return {**plain, "chance": 0.25, "p_chance": 1e-9, "p_teacher": None, **changes}


def against(**changes: Any) -> dict[str, Any]:
    cases = {
        "same": {"snn_pj": 8e6, "ann_pj": 88e6},
        "skipping": {"snn_pj": 8e6, "ann_pj": 44e6, "skipped": 0.5},
        "memory": {"snn_pj": 4e8, "ann_pj": 8e8},
        "int8": {"snn_pj": 8e6, "ann_pj": 4e6},
    }
    plain = {"assumptions": cases, "steps_pj": [3e6, 6e6, 8e6], "accuracy": []}
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (row(), RIGHT),
        (
            row(teacher_accuracy=0.92, p_teacher=0.051),
            f"{RIGHT}, equal to its teacher's 92.00 % wi",
        ),
        (row(teacher_accuracy=0.92, p_teacher=0.049), f"{RIGHT}, 2.00 points below its teacher's "),
        (row(teacher_accuracy=0.85, p_teacher=0.01), f"{RIGHT}, 5.00 points above its teacher's 8"),
        # further behind than any test may excuse
        (
            row(50, teacher_accuracy=0.61, p_teacher=0.9),
            "50.00 % (50 of 100 test images right), 11",
        ),
        (row(30, p_chance=0.15), f"30.00 % (30 of 100 test images right), {GUESSING}"),
        # recorded before there was such a column
        (row(30, p_chance=None, chance=None), "30.00 % (30 of 100 test images right)"),
    ],
)
def test_the_accuracy(last: dict[str, Any], said: str) -> None:
    assert verdict(last).line.startswith(said)
    assert verdict(last).guessing == (GUESSING in said)


def test_the_images_are_named() -> None:
    assert verdict(row(1, images=1), split="train").line == "100.00 % (1 of 1 training image right)"


def test_the_line_has_both_sides_of_the_comparison() -> None:
    found = verdict(row(), against())
    assert found.line == (
        f"{RIGHT}; 8 µJ an image: cheaper than the same ANN in 32 bits, dearer than in 8 bits"
    )
    assert [(one.name, one.ratio) for one in found.beside] == [
        ("in 32 bits", 11.0),
        ("in 32 bits, skipping its zeros (50 %, as in the teacher)", 5.5),
        ("in 32 bits, with memory traffic", 2.0),
        ("in 8 bits", 0.5),
    ]


def cases(**changes: float) -> dict[str, Any]:
    ratios = {"same": 2.0, "skipping": 2.0, "memory": 2.0, "int8": 2.0, **changes}
    found = {name: {"snn_pj": 1e3, "ann_pj": 1e3 * ratio} for name, ratio in ratios.items()}
    found["skipping"]["skipped"] = 0.5
    return against(assumptions=found)


IN_32 = "the same ANN in 32 bits"


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (cases(), f"cheaper than {IN_32}, and by each other way to count"),
        (
            cases(same=0.5, int8=0.5),
            f"dearer than {IN_32}, cheaper than skipping its zeros and with memory traffic",
        ),
        (cases(int8=1.04), f"cheaper than {IN_32}, about as dear as in 8 bits"),
        (
            against(assumptions={"same": {"snn_pj": 8e6, "ann_pj": 4e6}}),
            "dearer than the same ANN in the same arithmetic",
        ),
    ],
)
def test_what_says_otherwise_is_named(compared: dict[str, Any], said: str) -> None:
    assert verdict(None, compared).energy.split(": ")[1] == said


def test_a_network_that_guesses_gets_no_ratio() -> None:
    found = verdict(row(30, p_chance=0.15), against(accuracy=[0.3, 0.3, 0.3]))
    assert found.line.endswith(f"{GUESSING}; 8 µJ an image")
    assert (found.guessing, found.beside, found.fewer) == (True, (), "")


def test_far_behind_its_teacher_the_ratio_stands_behind_that() -> None:
    found = verdict(row(50, teacher_accuracy=0.9, p_teacher=0.0), against())
    assert found.behind == "40.00 points below its teacher's 90.00 %"
    assert found.line.index(found.behind) < found.line.index("cheaper")
    assert not verdict(row(80, teacher_accuracy=0.9, p_teacher=0.0), against()).behind


@pytest.mark.parametrize("snn_pj", [8e6, 0.0])
def test_an_ann_is_not_compared_with_itself(snn_pj: float) -> None:
    itself = {"same": {"snn_pj": snn_pj, "ann_pj": 8e6}}
    assert verdict(None, against(assumptions=itself)).line == f"{snn_pj / 1e6:g} µJ an image"
    left_out = verdict(None, against(assumptions=itself), at_least=True)
    assert left_out.line.startswith("at least ")


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ([0.896, 0.899, 0.9], "t = 1 alone has 89.60 % for 3 µJ; all steps 90.00 %."),
        ([0.89, 0.91, 0.9], "t = 1..2 have 91.00 % for 6 µJ; all steps 90.00 %."),
        ([0.89, 0.894, 0.9], ""),
        ([0.9], ""),
        ([], ""),
    ],
)
def test_fewer_steps_are_told_where_they_are_about_as_good(
    accuracy: list[float], said: str
) -> None:
    assert verdict(row(), against(accuracy=accuracy)).fewer == said


def test_of_frames_the_line_says_which_ann_it_is() -> None:
    cases = against()["assumptions"]
    cases = {"same": cases["same"], "frames": {"snn_pj": 8e6, "ann_pj": 528e6}, **cases}
    found = verdict(row(), against(assumptions=cases))
    mean = "cheaper than the same ANN on the mean frame, in 32 bits"
    assert found.energy == f"8 µJ an image: {mean}, dearer than in 8 bits"
    assert [one.name for one in found.beside][:2] == [
        *("on the mean frame, in 32 bits", "on each frame, in 32 bits")
    ]
    cases["same"] = {"snn_pj": 8e6, "ann_pj": 4e6}
    assert (
        "dearer than the same ANN on the mean frame, in 32 bits, cheaper than on each frame, in "
        in (verdict(row(), against(assumptions=cases)).energy)
    )
