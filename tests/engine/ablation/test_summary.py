"""The statistics of an ablation: means, and differences paired by seed."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tser_cli.engine.ablation.summary import summarise
from tser_cli.report.csv_files import read_csv, summary_schema, write_csv
from tser_cli.report.statistics import two_way_interval

METHOD, STEPS, WEIGHT = "method.name", "model.timesteps", "method.entropy_weight"
ACCURACIES = {
    "kd": [0.90, 0.92, 0.91, 0.93, 0.90],
    "ts": [0.93, 0.94, 0.93, 0.96, 0.92],
    "tser": [0.90, 0.93, 0.91, 0.92, 0.91],
}


def rows(accuracies: dict[str, list[float]] = ACCURACIES) -> list[dict[str, Any]]:
    return [
        {METHOD: method, "seed": seed, "state": "finished", "accuracy": value}
        for seed in range(5)
        for method, values in accuracies.items()
        for value in values[seed : seed + 1]
    ]


def summary(of: list[dict[str, Any]], baseline: str = "kd") -> dict[str, dict[str, Any]]:
    found = summarise(of, [METHOD], {METHOD: baseline}, "accuracy")
    return {row[METHOD]: row for row in found}


def test_differences_are_paired_by_seed() -> None:
    found = summary(rows())
    paired = np.subtract(ACCURACIES["ts"], ACCURACIES["kd"])
    scipys = stats.t.interval(0.95, 4, loc=paired.mean(), scale=stats.sem(paired))
    ts = found["ts"]
    assert ts["accuracy_mean"] == pytest.approx(np.mean(ACCURACIES["ts"]), abs=1e-15)
    assert ts["accuracy_std"] == pytest.approx(np.std(ACCURACIES["ts"], ddof=1), abs=1e-15)
    assert ts["difference_mean"] == pytest.approx(paired.mean(), abs=1e-15)
    assert (ts["difference_low"], ts["difference_high"]) == pytest.approx(scipys, abs=1e-12)
    assert (ts["n"], ts["pairs"], ts["resolved"], ts["baseline"]) == (5, 5, 1, 0)
    # unpaired, the same data resolve nothing: the pairing is what is tested here
    assert stats.ttest_ind(ACCURACIES["ts"], ACCURACIES["kd"]).pvalue < 0.05
    shuffled = {**ACCURACIES, "ts": [0.92, 0.96, 0.94, 0.93, 0.93]}
    again = summary(rows(shuffled))["ts"]
    assert again["difference_mean"] == pytest.approx(ts["difference_mean"], abs=1e-12)
    assert again["difference_high"] != pytest.approx(ts["difference_high"], abs=1e-4)


def test_a_difference_whose_interval_holds_0_is_not_resolved() -> None:
    tser = summary(rows())["tser"]
    assert tser["difference_low"] < 0 < tser["difference_high"]
    assert tser["resolved"] == 0
    assert summary(rows(), "ts")["kd"]["resolved"] == 1


def test_the_baseline_has_no_difference_to_itself() -> None:
    kd = summary(rows())["kd"]
    assert kd["baseline"] == 1
    assert kd["pairs"] == 0
    assert kd["difference_mean"] is kd["difference_low"] is kd["resolved"] is None


def test_only_seeds_that_both_have_are_paired() -> None:
    lacking = rows()
    for row in lacking:
        if (row[METHOD], row["seed"]) == ("kd", 1):
            row.update(state="failed", accuracy=None)
        if (row[METHOD], row["seed"]) == ("ts", 3):
            row.update(state="missing", accuracy="")
    found = summary(lacking)
    assert (found["kd"]["n"], found["ts"]["n"], found["ts"]["pairs"]) == (4, 4, 3)
    paired = [ACCURACIES["ts"][s] - ACCURACIES["kd"][s] for s in (0, 2, 4)]
    assert found["ts"]["difference_mean"] == pytest.approx(statistics.fmean(paired), abs=1e-15)
    values = [0.93, 0.94, 0.93, 0.92]
    assert found["ts"]["accuracy_mean"] == pytest.approx(statistics.fmean(values), abs=1e-15)


def test_a_run_that_failed_counts_nowhere_though_it_has_numbers() -> None:
    spoiled = [{**row, "state": "failed"} if row["seed"] == 0 else row for row in rows()]
    assert {row["n"] for row in summary(spoiled).values()} == {4}


def test_nothing_finished() -> None:
    nothing = [{**row, "state": "missing", "accuracy": None} for row in rows()]
    for row in summary(nothing).values():
        assert row["n"] == row["pairs"] == 0
        assert row["accuracy_mean"] is row["accuracy_std"] is row["difference_mean"] is None


def test_one_seed_has_a_difference_but_no_interval() -> None:
    found = summary(rows({"kd": [0.9], "ts": [0.92]}))["ts"]
    assert found["difference_mean"] == pytest.approx(0.02, abs=1e-15)
    assert found["accuracy_std"] is found["difference_low"] is found["resolved"] is None


def test_a_partial_baseline_compares_cells_alike_in_the_rest() -> None:
    made = [
        {METHOD: m, STEPS: t, "seed": s, "state": "finished", "accuracy": base + 0.001 * s * s * t}
        for s in range(3)
        for m, t, base in [("kd", 1, 0.8), ("ts", 1, 0.82), ("kd", 2, 0.9), ("ts", 2, 0.95)]
    ]
    found = summarise(made, [METHOD, STEPS], {METHOD: "kd"}, "accuracy")
    shown = {(row[METHOD], row[STEPS]): row for row in found}
    assert shown["ts", "1"]["difference_mean"] == pytest.approx(0.02, abs=1e-12)
    assert shown["ts", "2"]["difference_mean"] == pytest.approx(0.05, abs=1e-12)
    assert [row["baseline"] for row in found] == [1, 0, 1, 0]


def test_another_measure() -> None:
    made = [{**row, "best_validation_accuracy": 0.5} for row in rows()]
    (row, *_) = summarise(made, [METHOD], {METHOD: "kd"}, "best_validation_accuracy")
    assert (row["measure"], row["accuracy_mean"]) == ("best_validation_accuracy", 0.5)


def test_rows_from_a_csv_give_the_same_summary(tmp_path: Path) -> None:
    as_text = [{key: str(value) for key, value in row.items()} for row in rows()]
    assert summary(as_text) == summary(rows())
    path = tmp_path / "summary.csv"
    write_csv(path, list(summary(rows()).values()), summary_schema([METHOD]))
    written = read_csv(path)
    assert list(written[0]) == [
        *("method.name", "measure", "n", "accuracy_mean", "accuracy_std", "baseline"),
        *("difference_mean", "difference_low", "difference_high", "pairs", "resolved"),
        *("p_value", "p_holm", "resolved_holm", "two_way_low", "two_way_high", "p_mcnemar"),
    ]
    assert float(written[1]["difference_mean"]) == summary(rows())["ts"]["difference_mean"]
    assert written[0]["difference_mean"] == ""


@pytest.mark.parametrize(("seeds", "verdict"), [(4, None), (5, 1)])
def test_fewer_than_five_pairs_have_an_interval_but_no_verdict(
    seeds: int, verdict: int | None
) -> None:
    few = {method: values[:seeds] for method, values in ACCURACIES.items()}
    ts = summary(rows(few))["ts"]
    assert ts["difference_low"] > 0
    assert ts["resolved"] == ts["resolved_holm"] == verdict
    assert (ts["p_value"] is None) == (verdict is None)


def test_verdicts_of_the_whole_table() -> None:
    found = summary(rows())
    p = {method: row["p_value"] for method, row in found.items()}
    paired = np.subtract(ACCURACIES["ts"], ACCURACIES["kd"])
    assert p["ts"] == pytest.approx(stats.ttest_1samp(paired, 0.0).pvalue)
    assert found["ts"]["p_holm"] == pytest.approx(2 * p["ts"])
    assert found["tser"]["p_holm"] == pytest.approx(p["tser"])
    assert p["kd"] is found["kd"]["p_holm"] is found["kd"]["resolved_holm"] is None


def answered(seed: int, better: int) -> Any:
    """Which of 100 images are right: 70 by the seed, `better` of the rest."""
    right = np.random.default_rng(seed).permutation(100) < 70
    right[np.flatnonzero(~right)[:better]] = True
    return right


def test_images_count_too_where_there_are_predictions() -> None:
    right = {
        ("kd",): {seed: answered(seed, 0) for seed in range(5)},
        ("ts",): {seed: answered(seed, 5) for seed in range(6)},
    }
    found = summarise(rows(), [METHOD], {METHOD: "kd"}, "accuracy", right)
    kd, ts, tser = found
    differences = np.stack([answered(s, 5).astype(float) - answered(s, 0) for s in range(5)])
    assert (ts["two_way_low"], ts["two_way_high"]) == two_way_interval(differences)
    assert ts["two_way_low"] < 0.05 < ts["two_way_high"]
    for row in (kd, tser):
        assert row["two_way_low"] is row["two_way_high"] is row["p_mcnemar"] is None
    assert ts["p_mcnemar"] is None


def test_a_single_pair_has_mcnemar_s_test() -> None:
    right = {("kd",): {0: answered(0, 0)}, ("ts",): {0: answered(0, 6)}}
    one = rows({"kd": [0.7], "ts": [0.76]})
    ts = summarise(one, [METHOD], {METHOD: "kd"}, "accuracy", right)[1]
    assert ts["p_mcnemar"] == pytest.approx(2 / 2**6)
    assert ts["two_way_low"] is None


def test_predictions_of_other_images_are_not_compared() -> None:
    right = {("kd",): {0: answered(0, 0)[:50]}, ("ts",): {0: answered(0, 6)}}
    ts = summarise(rows(), [METHOD], {METHOD: "kd"}, "accuracy", right)[1]
    assert ts["p_mcnemar"] is ts["two_way_low"] is None


def test_a_baseline_of_0_is_found_among_fractions() -> None:
    made = [{**row, WEIGHT: {"kd": 0, "ts": 0.05, "tser": 0.5}[row[METHOD]]} for row in rows()]
    base, low, high = summarise(made, [WEIGHT], {WEIGHT: 0}, "accuracy")
    assert (base[WEIGHT], base["baseline"], base["pairs"]) == ("0", 1, 0)
    assert [(row[WEIGHT], row["pairs"]) for row in (low, high)] == [("0.05", 5), ("0.5", 5)]
