"""The figure of a frontier: where its points stand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from tests.report.test_ablation_plots import METHOD, cells
from tser_cli.report.ablation_figures import draw_frontier
from tser_cli.report.csv_files import FRONTIER
from tser_cli.report.style import METHODS, TEACHER


def point(kind: str, energy: float, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    reach: dict[str, Any] = {}
    if accuracy is not None:
        reach = {"accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.01}
    row = {METHOD: "", "point": kind, "energy_pj": energy, "accuracy": accuracy}
    between = {"energy_low_pj": energy - 1e5, "energy_high_pj": energy + 1e5}
    return {**dict.fromkeys(FRONTIER), **row, **between, **reach, **changes}


def points(exits: bool = True) -> pd.DataFrame:
    made = []
    for method, accuracy in (("kd", 0.91), ("ts", 0.92)):
        made.append(point("all_steps", 4e6, accuracy, **{METHOD: method}))
        for energy in (2e6, 3e6, 4e6) if exits else ():
            below = accuracy - (4e6 - energy) / 2e8
            made.append(point("early_exit", energy, below, **{METHOD: method}))
    made.append(point("ann", 3e7, None))
    made.append(point("ann_int8", 1.5e6, None))
    made.append(point("teacher", 6e7, 0.95))
    kinds = {name: kind for name, kind in FRONTIER.items() if kind == "float64"}
    return pd.DataFrame(made).astype(kinds)


def test_cells_stand_with_their_curves_and_both_intervals() -> None:
    near = draw_frontier(points(), cells(), [METHOD]).axes[0]
    curve = near.lines[0]
    assert curve.get_xdata() == pytest.approx([2.0, 3.0, 4.0])
    assert curve.get_ydata() == pytest.approx([90.0, 90.5, 91.0])
    assert to_hex(curve.get_color()) == METHODS["kd"].colour
    ends = [line for line in near.lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ends] == [
        pytest.approx((2.0, 90.0)),
        pytest.approx((4.0, 91.0)),
        pytest.approx((2.0, 91.0)),
        pytest.approx((4.0, 92.0)),
    ]
    assert [line.get_markerfacecolor() for line in ends[::2]] == ["none", "none"]
    bars = [bar.get_paths()[0].vertices for bar in near.collections]
    assert [3.9, 4.1] in [pytest.approx(v[:, 0].tolist()) for v in bars]
    assert [90.0, 92.0] in [pytest.approx(v[:, 1].tolist()) for v in bars]
    assert [text.get_text() for text in near.texts] == ["kd", "ts"]


def test_the_ann_is_a_line_and_the_teacher_a_point() -> None:
    far = draw_frontier(points(), cells(), [METHOD]).axes[1]
    assert far.get_xscale() == "log"
    assert [text.get_text() for text in far.texts] == [
        *("teacher", "ANN of the same shape", "that ANN, 8-bit integers")
    ]
    (teacher,) = [line for line in far.lines if line.get_marker() == TEACHER.marker]
    assert (teacher.get_xdata()[0], teacher.get_ydata()[0]) == (60.0, 95.0)
    lines = [line.get_xdata()[0] for line in far.lines if line.get_linestyle() == ":"]
    assert lines == pytest.approx([30.0, 1.5])
    assert far.get_xlim()[0] < 1.5 < 60.0 < far.get_xlim()[1]
    assert len(far.collections) == 0  # intervals are drawn once


def test_cells_without_early_exit_are_points() -> None:
    near = draw_frontier(points(exits=False), cells(), [METHOD]).axes[0]
    assert len(near.lines) == 2
    assert near.get_title() == ""


def test_one_seed_has_no_interval() -> None:
    alone = points()
    for name in FRONTIER:
        if name.endswith(("_low", "_high", "_low_pj", "_high_pj")):
            alone[name] = float("nan")
    assert len(draw_frontier(alone, cells(), [METHOD]).axes[0].collections) == 0


def test_a_cell_without_a_point_is_left_out() -> None:
    table = points()
    some = draw_frontier(table[table[METHOD] != "ts"], cells(), [METHOD])
    assert [text.get_text() for text in some.axes[0].texts] == ["kd"]
