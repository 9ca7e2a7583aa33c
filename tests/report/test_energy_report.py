"""The sentences that decide: ranges, not one favourable number."""

from __future__ import annotations

from typing import Any

import pytest

from tser_cli.report.words import headline, times


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
