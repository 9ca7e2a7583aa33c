"""The tables of an ablation: its runs, its cells, energy at equal accuracy, and the frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.engine.results import RESULT
from tser_cli.base import files
from tser_cli.engine.ablation.folder import CellRun, cell_folder
from tser_cli.engine.ablation.grid import Cell, Request, make_request
from tser_cli.engine.ablation.tables import (
    AtTarget,
    ExitRun,
    ExitStatistics,
    Found,
    Point,
    equal_accuracy,
    frontier,
    summarise_exits,
    write_step_table,
    write_tables,
)
from tser_cli.engine.evaluation.early_exit import Stops
from tser_cli.engine.runs.folder import Run, create
from tser_cli.report.comparison import Key
from tser_cli.report.csv_files import (
    EXIT_STATISTICS,
    PROVENANCE,
    STEP_MEASURES,
    ablation_exit_schema,
    by_cell,
    read_csv,
    write_csv,
)
from tser_cli.report.predictions import PREDICTIONS, write_predictions
from tser_cli.report.statistics import interval
from tser_cli.settings.config import Config
from tser_cli.settings.recipe import Layer

Ask = Callable[..., Request]


def finish(cell: Cell, folder: Path, **result: Any) -> Run:
    run = create(cell_folder(cell, folder), "student", cell.config)
    run.update_status(state="finished", result={**RESULT, **result})
    return run


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from now on."""
    names: list[str] = []
    before = files.read_regular
    monkeypatch.setattr(
        files, "read_regular", lambda path, limit: (names.append(path.name), before(path, limit))[1]
    )
    return names


def test_each_status_is_read_once_and_only_of_cells_that_changed(
    ask: Ask, tmp_path: Path, reads: list[str]
) -> None:
    request = ask(["method=ce,kd"], 3)
    for place, cell in enumerate(request.cells, start=1):
        finish(cell, tmp_path)
        reads.clear()
        write_tables(request, tmp_path)
        assert reads.count("status.json") == 1
        states = [row["state"] for row in read_csv(tmp_path / "ablation.csv")]
        assert states.count("finished") == place
    reads.clear()
    write_tables(request, tmp_path)
    assert "status.json" not in reads


def test_a_validation_accuracy_is_compared_where_it_is_asked_for(ask: Ask, tmp_path: Path) -> None:
    changes = {"data.validation_fraction": 0.25}
    request = ask(["method=ce"], 2, changes, measure="best_validation_accuracy")
    for cell, best in zip(request.cells, (0.25, 0.75), strict=True):
        finish(cell, tmp_path, best_validation_accuracy=best)
    write_tables(request, tmp_path)
    (summary,) = read_csv(tmp_path / "summary.csv")
    assert (summary["measure"], summary["accuracy_mean"]) == ("best_validation_accuracy", "0.5")


@pytest.mark.parametrize(
    ("git", "commit"),
    [
        ({"commit": "c0ffee", "changed": False}, "c0ffee"),
        ({"commit": "c0ffee", "changed": True}, "c0ffee+changes"),
        ({}, "version 1.2"),
    ],
)
def test_a_row_says_where_its_numbers_come_from(
    ask: Ask, tmp_path: Path, git: dict[str, object], commit: str
) -> None:
    request = ask(["method=ce,kd"])
    run = finish(request.cells[0], tmp_path, events="simulated from x")
    run.update_environment(tser="1.2", git=git, packages={"torch": "2.15"}, threads=3)
    write_tables(request, tmp_path)
    made, missing = read_csv(tmp_path / "ablation.csv")
    assert (made["events"], missing["events"]) == ("simulated from x", "")
    assert (made["commit"], made["torch"], made["threads"]) == (commit, "2.15", "3")
    assert list(made)[-len(PROVENANCE) :] == list(PROVENANCE)
    assert (missing["state"], missing["accuracy"], missing["commit"]) == ("missing", "", "")
    assert missing["folder"] == "cells/method=kd_s0"


def test_the_table_of_steps_has_each_measure_at_each_step(ask: Ask, tmp_path: Path) -> None:
    request = ask(["method=ce,kd"], 2, {"model.timesteps": 2})
    values = {"ce": (0.5, 0.75), "kd": (0.75, 0.8125)}
    for cell in request.cells:
        at = values[cell.key[0]]
        rows = [
            {
                **{"t": t, "accuracy_at_t": at[t - 1] + cell.seed / 16, "accuracy_cumulative": 0.5},
                **({"ece_at_t": t / 100 + cell.seed / 1000} if cell.key[0] == "ce" else {}),
            }
            for t in (1, 2)
        ]
        run = finish(cell, tmp_path, timesteps=2, per_timestep=rows, teacher_train_accuracy=0.9)
        answers_IT = np.tile(np.arange(10) < 4 + (cell.key[0] == "kd"), (2, 1)).T.astype(int)
        write_predictions(run.folder / PREDICTIONS, np.ones(10, int), answers_IT, answers_IT)
    write_tables(request, tmp_path)
    assert write_step_table(request, tmp_path)
    assert read_csv(tmp_path / "ablation.csv")[0]["teacher_train_accuracy"] == "0.9"
    table = read_csv(tmp_path / "steps.csv")
    found = {(row["measure"], row["method.name"]): row for row in table}
    assert len(found) == len(table) == 2 * 2 * len(STEP_MEASURES)
    for t, expected in ((1, 0.25), (2, 0.0625)):
        row = found[f"accuracy_at_{t}", "kd"]
        assert float(row["difference_mean"]) == expected
        assert float(row["accuracy_mean"]) == values["kd"][t - 1] + 1 / 32
        assert float(row["two_way_low"]) < 0.1 < float(row["two_way_high"])  # 1 image of 10
    assert float(found["ece_at_2", "ce"]["accuracy_mean"]) == pytest.approx(0.0205)
    assert found["ece_at_2", "kd"]["n"] == found["loss_at_1", "ce"]["n"] == "0"


@pytest.mark.parametrize(
    ("changes", "measure"),
    [
        ({"model.timesteps": 1}, "accuracy"),
        ({"model.timesteps": 2, "data.validation_fraction": 0.25}, "best_validation_accuracy"),
    ],
)
def test_no_table_of_steps_of_one_step_or_of_a_search(
    ask: Ask, tmp_path: Path, changes: dict[str, Any], measure: str
) -> None:
    assert not write_step_table(ask(["method=ce,kd"], 1, changes, measure=measure), tmp_path)
    assert not (tmp_path / "steps.csv").exists()


def test_images_count_where_there_are_predictions(ask: Ask, tmp_path: Path) -> None:
    request = ask(["method=ce,kd"])
    for cell, wrong in zip(request.cells, (4, 1), strict=True):
        answers = np.where(np.arange(10) < wrong, 1, 0)[:, None]
        run = finish(cell, tmp_path)
        write_predictions(run.folder / PREDICTIONS, np.zeros(10, int), answers, answers)
    base, other = write_tables(request, tmp_path)
    # the second alone is right on 3 images, the first alone on none: p = 2 * (1/2)^3
    assert (base.p_mcnemar, other.p_mcnemar) == (None, pytest.approx(0.25))
    assert read_csv(tmp_path / "summary.csv")[1]["p_mcnemar"] == str(other.p_mcnemar)


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


def summarised(asked: Request, reached: Sequence[AtTarget]) -> list[ExitStatistics]:
    return summarise_exits(reached, asked.axes, asked.baseline)


def test_the_target_is_the_baseline_s_and_the_threshold_that_of_held_out_images(
    tmp_path: Path,
) -> None:
    # kd reaches 90 of 100 held-out images: the target is 89.5. ts has the images from 20 on right
    # at once, and those from 5 on in the end: if 0 .. 14 go on, 10 more are right.
    runs = {
        (("kd",), 0): run(stops(85, 5), stops(80, 5)),
        (("ts",), 0): run(stops(80, 15), stops(60, 20)),
    }
    kd, ts = equal_accuracy(request(), runs)
    assert (kd.cell.seed, kd.row(0.005)["chosen_on"]) == (0, "validation")
    assert kd.target == ts.target == pytest.approx(0.895)
    assert ts.threshold == pytest.approx(0.15)
    # of the test images 15 go on, of which none is ever right; 60 of the others are
    assert ts.accuracy == pytest.approx(0.60)
    assert ts.shares == pytest.approx((0.85, 0.15))
    assert ts.row(0.005)["mean_steps"] == pytest.approx(1.15)
    assert ts.energy_pj == pytest.approx(0.85 * 2 + 0.15 * 3)
    assert (ts.accuracy_full, ts.energy_full_pj) == (pytest.approx(0.8), pytest.approx(3.0))
    far, _ = equal_accuracy(request(margin=10.0), runs)  # a larger margin costs less
    assert far.energy_pj == pytest.approx(2.0)
    assert kd.energy_pj is not None and kd.energy_pj > 2.0
    # and the columns of both tables are those of their rows
    write_csv(tmp_path / "a.csv", [ts.row(0.005)], ablation_exit_schema([METHOD], 2))
    cells = [cell.row() for cell in summarised(request(), [kd, ts])]
    write_csv(tmp_path / "b.csv", cells, by_cell([METHOD], EXIT_STATISTICS))
    assert float(read_csv(tmp_path / "a.csv")[0]["energy_pj"]) == ts.energy_pj
    assert read_csv(tmp_path / "b.csv")[0]["n"] == "1"


def test_a_run_that_never_gets_there_is_counted_and_in_no_mean() -> None:
    runs: dict[tuple[Key, int], ExitRun] = {}
    for seed in range(3):
        runs[("kd",), seed] = run(stops(85, 5), stops(80, 5))
        runs[("ts",), seed] = run(stops(70, 15 + 10 * (seed > 0)), stops(60, 20))
    asked = request(seeds=3)
    rows = equal_accuracy(asked, runs)
    (missed,) = [row for row in rows if row.threshold is None]
    assert (missed.cell.label, missed.cell.seed, missed.energy_pj) == ("method=ts", 0, None)
    kd, ts = summarised(asked, rows)
    assert (kd.energy.n, kd.missed, ts.energy.n, ts.missed, ts.energy.pairs) == (3, 0, 2, 1, 2)


@pytest.mark.parametrize("hard", [0, 1])
def test_a_cell_with_a_run_that_never_gets_there_has_no_verdict(hard: int) -> None:
    runs: dict[tuple[Key, int], ExitRun] = {}
    for seed in range(6):
        runs[("kd",), seed] = run(stops(85, 5), stops(80, 5, first=3.0 + 0.01 * seed))
        runs[("ts",), seed] = run(stops(85 - 70 * (seed < hard), 5), stops(80, 5))
    asked = request(seeds=6)
    _, ts = summarised(asked, equal_accuracy(asked, runs))
    assert (ts.energy.pairs, ts.missed, ts.energy.difference is None) == (6 - hard, hard, False)
    judged = {cell.resolved is None for cell in (ts.energy, ts.accuracy)}
    judged |= {ts.energy.p_value is None, ts.row()["resolved_holm"] is None}
    assert judged == {hard == 1}


def test_differences_are_paired_by_seed() -> None:
    runs: dict[tuple[Key, int], ExitRun] = {}
    for seed in range(5):
        runs[("kd",), seed] = run(stops(90, 0), stops(90, 0, first=2.0 + seed))
        runs[("ts",), seed] = run(stops(90, 0), stops(80, 0, first=2.1 + 1.01 * seed))
    asked = request(seeds=5)
    kd, ts = summarised(asked, equal_accuracy(asked, runs))
    assert kd.energy.mean == pytest.approx(4.0)
    differences = [0.1 + 0.01 * seed for seed in range(5)]
    assert ts.energy.difference == pytest.approx(0.12)
    assert ts.energy.interval == pytest.approx(interval(differences))
    assert ts.energy.resolved and ts.energy.resolved_holm and kd.energy.is_baseline
    assert ts.accuracy.difference == pytest.approx(-0.1)
    assert ts.accuracy.mean == pytest.approx(0.8)


def test_runs_without_held_out_images_or_baseline() -> None:
    alone = {(("ts",), 0): run(stops(80, 15), stops(60, 20))}
    (row,) = equal_accuracy(request(), alone)
    assert row.target is row.energy_pj is None
    assert row.accuracy_full == pytest.approx(0.8)
    assert summarised(request(), [row])[0].missed == 0
    assert equal_accuracy(request(), {(("kd",), 0): run(None, stops(80, 5))}) == []
    assert equal_accuracy(request(), {(("kd",), 0): run(None, None)}) == []


def document(teacher: bool = True, ann_pj: float = 46.0) -> dict[str, Any]:
    return {
        "totals": {"ann_macs": ann_pj / 4.6, "ann_energy_pj": ann_pj},
        "teacher": {"energy_pj": 92.0} if teacher else None,
    }


def random_stops(seed: int, steps: int = 2) -> Stops:
    draw = np.random.default_rng(seed)
    right = (draw.random((steps, 50)) < 0.8).astype(float)
    return Stops(right, draw.random((steps, 50)), draw.random((steps, 50)).cumsum(0))


def found(seeds: int = 3, state: str = "finished") -> Found:
    """The cells kd and ts: each seed is a point better and costs 1 pJ more."""
    cells = []
    for place in range(2 * seeds):
        method, seed = ("kd", "ts")[place % 2], place // 2
        accuracy = {"kd": 0.9, "ts": 0.8}[method] + 0.01 * seed
        result = {**RESULT, "accuracy": accuracy, "energy_pj": 10.0 + seed}
        record = SimpleNamespace(result=SimpleNamespace(**{**result, "teacher_accuracy": 0.97}))
        known: Any = record if state == "finished" else None
        cells.append((Cell({METHOD: method}, seed, Config()), CellRun(state, known)))
    return cells


def runs(**changes: Any) -> dict[tuple[Key, int], ExitRun]:
    return {
        ((method,), seed): ExitRun(document(**changes), random_stops(seed), None)
        for method in ("kd", "ts")
        for seed in range(3)
    }


def of(points: list[Point], name: str, method: str | None = None) -> list[Point]:
    return [one for one in points if one.point == name and method in (None, *one.key)]


def test_a_cell_is_a_mean_with_intervals_in_both_directions() -> None:
    (kd,) = of(frontier(found(), runs()), "all_steps", "kd")
    assert (kd.n, kd.energy_pj, kd.accuracy) == (3, 11.0, pytest.approx(0.91))
    assert (kd.energy_low_pj, kd.energy_high_pj) == interval([10.0, 11.0, 12.0])
    reach = (kd.accuracy_low, kd.accuracy_high)
    assert reach == pytest.approx(interval([0.90, 0.91, 0.92]))
    (one, _) = of(frontier(found(seeds=1), {}), "all_steps")
    assert (one.n, one.accuracy_low, one.energy_high_pj) == (1, None, None)
    assert frontier(found(state="missing"), {}) == []


def test_early_exit_goes_from_the_first_step_alone_to_all_steps() -> None:
    curve = of(frontier(found(), runs()), "early_exit", "kd")
    made = [random_stops(seed) for seed in range(3)]
    first, last = curve[0], curve[-1]
    assert (first.threshold, last.threshold) == (0.0, math.inf)
    assert first.energy_pj == pytest.approx(np.mean([s.energy_TI[0].mean() for s in made]))
    assert first.accuracy == pytest.approx(np.mean([s.right_TI[0].mean() for s in made]))
    assert last.energy_pj == pytest.approx(np.mean([s.energy_TI[1].mean() for s in made]))
    energies = [point.energy_pj for point in curve]
    assert energies == sorted(energies)
    assert np.diff(energies).max() < 0.15 * (energies[-1] - energies[0])


def test_what_does_not_spike_stands_there_once() -> None:
    points = frontier(found(), runs())
    (ann,), (int8,), (teacher,) = (of(points, name) for name in ("ann", "ann_int8", "teacher"))
    assert (ann.energy_pj, ann.accuracy) == (46.0, None)
    assert int8.energy_pj == pytest.approx(46.0 * 0.3 / 4.6)
    assert (teacher.energy_pj, teacher.accuracy) == (92.0, pytest.approx(0.97))
    assert ann.key == () and "method.name" not in ann.row([METHOD])


def test_an_ann_for_each_cell_where_they_differ() -> None:
    differing = runs()
    for seed in range(3):
        differing[("ts",), seed] = ExitRun(document(ann_pj=23.0), random_stops(seed), None)
    anns = of(frontier(found(), differing), "ann")
    assert [(point.key, point.energy_pj) for point in anns] == [(("kd",), 46.0), (("ts",), 23.0)]


@pytest.mark.parametrize("test", [None, random_stops(0, steps=1)])
def test_a_network_that_can_t_stop_has_no_curve(test: Stops | None) -> None:
    some = {(("kd",), 0): ExitRun(document(teacher=False), test, None)}
    points = frontier(found(), some)
    assert of(points, "early_exit") == of(points, "teacher") == []
    assert len(of(points, "all_steps")) == 2
