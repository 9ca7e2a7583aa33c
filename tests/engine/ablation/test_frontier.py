"""The points of a frontier: cells, early exit, and what does not spike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tser_cli.engine.ablation.exits import ExitRun, Key, frontier
from tser_cli.engine.evaluation.early_exit import Stops
from tser_cli.report.statistics import interval

METHOD = "method.name"
Rows = list[dict[str, Any]]


def document(teacher: bool = True, ann_pj: float = 46.0) -> dict[str, Any]:
    return {
        "totals": {"ann_macs": ann_pj / 4.6, "ann_energy_pj": ann_pj},
        "teacher": {"energy_pj": 92.0} if teacher else None,
    }


def stops(seed: int, steps: int = 2) -> Stops:
    draw = np.random.default_rng(seed)
    right = (draw.random((steps, 50)) < 0.8).astype(float)
    return Stops(right, draw.random((steps, 50)), draw.random((steps, 50)).cumsum(0))


def rows() -> Rows:
    return [
        {
            **{METHOD: method, "seed": seed, "state": "finished", "teacher_accuracy": 0.97},
            **{"accuracy": base + 0.01 * seed, "energy_pj": 10.0 + seed},
        }
        for method, base in (("kd", 0.9), ("ts", 0.8))
        for seed in range(3)
    ]


def runs(**changes: Any) -> dict[Key, ExitRun]:
    return {
        (method, str(seed)): ExitRun(document(**changes), stops(seed), None)
        for method in ("kd", "ts")
        for seed in range(3)
    }


def of(found: Rows, point: str, method: str | None = None) -> Rows:
    return [r for r in found if r["point"] == point and method in (None, r.get(METHOD))]


def test_a_cell_is_a_mean_with_intervals_in_both_directions() -> None:
    (kd,) = of(frontier(rows(), [METHOD], runs()), "all_steps", "kd")
    assert (kd["n"], kd["energy_pj"], kd["accuracy"]) == (3, 11.0, pytest.approx(0.91))
    assert (kd["energy_low_pj"], kd["energy_high_pj"]) == interval([10.0, 11.0, 12.0])
    reach = (kd["accuracy_low"], kd["accuracy_high"])
    assert reach == pytest.approx(interval([0.90, 0.91, 0.92]))


def test_early_exit_goes_from_the_first_step_alone_to_all_steps() -> None:
    curve = of(frontier(rows(), [METHOD], runs()), "early_exit", "kd")
    made = [stops(seed) for seed in range(3)]
    first, last = curve[0], curve[-1]
    assert (first["threshold"], last["threshold"]) == (0.0, math.inf)
    assert first["energy_pj"] == pytest.approx(np.mean([s.energy_TI[0].mean() for s in made]))
    assert first["accuracy"] == pytest.approx(np.mean([s.right_TI[0].mean() for s in made]))
    assert last["energy_pj"] == pytest.approx(np.mean([s.energy_TI[1].mean() for s in made]))
    energies = [point["energy_pj"] for point in curve]
    assert energies == sorted(energies)
    assert np.diff(energies).max() < 0.15 * (energies[-1] - energies[0])


def test_what_does_not_spike_stands_there_once() -> None:
    found = frontier(rows(), [METHOD], runs())
    (ann,), (int8,), (teacher,) = (of(found, name) for name in ("ann", "ann_int8", "teacher"))
    assert (ann["energy_pj"], ann.get("accuracy")) == (46.0, None)
    assert int8["energy_pj"] == pytest.approx(46.0 * 0.23 / 4.6)
    assert (teacher["energy_pj"], teacher["accuracy"]) == (92.0, pytest.approx(0.97))
    assert METHOD not in ann


def test_an_ann_for_each_cell_where_they_differ() -> None:
    differing = runs()
    for seed in range(3):
        differing["ts", str(seed)] = ExitRun(document(ann_pj=23.0), stops(seed), None)
    found = of(frontier(rows(), [METHOD], differing), "ann")
    assert [(row[METHOD], row["energy_pj"]) for row in found] == [("kd", 46.0), ("ts", 23.0)]


@pytest.mark.parametrize("test", [None, stops(0, steps=1)])
def test_a_network_that_can_t_stop_has_no_curve(test: Stops | None) -> None:
    some = {("kd", "0"): ExitRun(document(teacher=False), test, None)}
    found = frontier(rows(), [METHOD], some)
    assert of(found, "early_exit") == of(found, "teacher") == []
    assert len(of(found, "all_steps")) == 2


def test_unfinished_cells_have_no_point() -> None:
    missing = [{**row, "state": "missing", "accuracy": None} for row in rows()]
    assert frontier(missing, [METHOD], {}) == []


def test_one_seed_has_no_interval() -> None:
    (kd, _) = of(frontier([r for r in rows() if not r["seed"]], [METHOD], {}), "all_steps")
    assert (kd["n"], kd["accuracy_low"], kd["energy_high_pj"]) == (1, None, None)
