"""Energy at equal accuracy: targets and thresholds of held-out images, figures of test images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tser_cli.engine.ablation.exits import ExitRun, Key, equal_accuracy, summarise_exits
from tser_cli.engine.ablation.grid import Request, make_request
from tser_cli.engine.evaluation.early_exit import Stops
from tser_cli.report.csv_files import ablation_exit_schema, exit_summary_schema, read_csv, write_csv
from tser_cli.report.statistics import interval
from tser_cli.settings.recipe import Layer

METHOD = "method.name"


def request(methods: str = "kd,ts", seeds: int = 1, **more: Any) -> Request:
    section = {"vary": [f"method={methods}"], "seeds": seeds, "baseline": "method=kd"}
    return make_request([Layer("tests", {"data.name": "digits"})], section, **more)


def stops(right: int, late: int, first: float = 2.0, second: float = 3.0) -> Stops:
    """100 images, image i with confidence i / 100 at step 1; its step costs 2 pJ, the next 1 more.

    `right` images are right at step 1: the surest. `late` more are right at step 2: the next.
    """
    order = np.arange(100)
    at_1 = (order >= 100 - right).astype(float)
    at_2 = (order >= 100 - right - late).astype(float)
    energies = np.stack([np.full(100, first), np.full(100, second)])
    return Stops(np.stack([at_1, at_2]), np.stack([order / 100, np.ones(100)]), energies)


def run(held_out: Stops | None, test: Stops | None) -> ExitRun:
    return ExitRun({}, test, held_out)


def test_the_target_is_the_baseline_s_and_the_threshold_that_of_held_out_images() -> None:
    # kd reaches 90 of 100 held-out images: the target is 89.5. ts has the images from 20 on right
    # at once, and those from 5 on in the end: if 0 .. 14 go on, 10 more are right.
    runs = {
        ("kd", "0"): run(stops(85, 5), stops(80, 5)),
        ("ts", "0"): run(stops(80, 15), stops(60, 20)),
    }
    kd, ts = equal_accuracy(request(), runs)
    assert (kd["seed"], kd["chosen_on"], kd["accuracy_margin"]) == (0, "validation", 0.005)
    assert kd["target_accuracy"] == ts["target_accuracy"] == pytest.approx(0.895)
    assert ts["threshold"] == pytest.approx(0.15)
    # of the test images 15 go on, of which none is ever right; 60 of the others are
    assert ts["accuracy"] == pytest.approx(0.60)
    assert ts["share_exit_1"] == pytest.approx(0.85)
    assert ts["mean_steps"] == pytest.approx(1.15)
    assert ts["energy_pj"] == pytest.approx(0.85 * 2 + 0.15 * 3)
    assert (ts["accuracy_full"], ts["energy_full_pj"]) == (pytest.approx(0.8), pytest.approx(3.0))


def test_a_larger_margin_costs_less() -> None:
    runs = {("kd", "0"): run(stops(85, 5), stops(80, 5))}
    (near,) = equal_accuracy(request("kd"), runs)
    (far,) = equal_accuracy(request("kd", margin=10.0), runs)
    assert far["energy_pj"] == pytest.approx(2.0)
    assert near["energy_pj"] > far["energy_pj"]


def test_a_run_that_never_gets_there_is_counted_and_in_no_mean() -> None:
    runs: dict[Key, ExitRun] = {}
    for seed in range(3):
        runs["kd", str(seed)] = run(stops(85, 5), stops(80, 5))
        runs["ts", str(seed)] = run(stops(70, 15 + 10 * (seed > 0)), stops(60, 20))
    asked = request(seeds=3)
    rows = equal_accuracy(asked, runs)
    (missed,) = [row for row in rows if row["threshold"] is None]
    assert (missed[METHOD], missed["seed"], missed["energy_pj"]) == ("ts", 0, None)
    kd, ts = summarise_exits(rows, asked.axes, asked.baseline)
    assert (kd["n"], kd["missed"], ts["n"], ts["missed"], ts["pairs"]) == (3, 0, 2, 1, 2)


def test_differences_are_paired_by_seed() -> None:
    runs: dict[Key, ExitRun] = {}
    for seed in range(5):
        runs["kd", str(seed)] = run(stops(90, 0), stops(90, 0, first=2.0 + seed))
        runs["ts", str(seed)] = run(stops(90, 0), stops(80, 0, first=2.1 + 1.01 * seed))
    asked = request(seeds=5)
    kd, ts = summarise_exits(equal_accuracy(asked, runs), asked.axes, asked.baseline)
    assert kd["energy_mean_pj"] == pytest.approx(4.0)
    differences = [0.1 + 0.01 * seed for seed in range(5)]
    assert ts["energy_difference_pj"] == pytest.approx(0.12)
    reach = (ts["energy_difference_low_pj"], ts["energy_difference_high_pj"])
    assert reach == pytest.approx(interval(differences))
    assert (ts["resolved"], ts["resolved_holm"], kd["baseline"]) == (1, 1, 1)
    assert ts["difference_mean"] == pytest.approx(-0.1)
    assert ts["accuracy_mean"] == pytest.approx(0.8)


def test_runs_without_held_out_images_or_baseline() -> None:
    alone = {("ts", "0"): run(stops(80, 15), stops(60, 20))}
    (row,) = equal_accuracy(request(), alone)
    assert row["target_accuracy"] is row["energy_pj"] is None
    assert row["accuracy_full"] == pytest.approx(0.8)
    assert summarise_exits([row], [METHOD], {METHOD: "kd"})[0]["missed"] == 0
    assert equal_accuracy(request(), {("kd", "0"): run(None, stops(80, 5))}) == []
    assert equal_accuracy(request(), {("kd", "0"): run(None, None)}) == []


def test_the_tables_hold_the_rows(tmp_path: Any) -> None:
    runs = {("kd", "0"): run(stops(85, 5), stops(80, 5))}
    asked = request()
    rows = equal_accuracy(asked, runs)
    write_csv(tmp_path / "a.csv", rows, ablation_exit_schema(asked.axes, 2))
    summary = summarise_exits(rows, asked.axes, asked.baseline)
    write_csv(tmp_path / "b.csv", summary, exit_summary_schema(asked.axes))
    assert float(read_csv(tmp_path / "a.csv")[0]["energy_pj"]) == rows[0]["energy_pj"]
    assert read_csv(tmp_path / "b.csv")[0]["n"] == "1"
