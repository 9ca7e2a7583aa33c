"""How groups of runs differ: means, and differences paired by seed; settings; answers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tser_cli.report.comparison import (
    CellStatistics,
    Disagreement,
    Key,
    describe,
    differing,
    disagreement,
    statistics_in,
    summarise,
)
from tser_cli.report.csv_files import STATISTICS, by_cell, read_csv, read_summary, write_csv
from tser_cli.report.predictions import Predictions
from tser_cli.report.statistics import two_way_interval

METHOD, STEPS, WEIGHT = "method.name", "model.timesteps", "method.entropy_weight"
ACCURACIES = {
    "kd": [0.90, 0.92, 0.91, 0.93, 0.90],
    "ts": [0.93, 0.94, 0.93, 0.96, 0.92],
    "tser": [0.90, 0.93, 0.91, 0.92, 0.91],
}


def cells(accuracies: Mapping[str, Sequence[float]] = ACCURACIES) -> dict[Key, dict[int, float]]:
    return {(method,): dict(enumerate(values)) for method, values in accuracies.items()}


def summary(
    of: Mapping[Key, Mapping[int, float]], baseline: str = "kd"
) -> dict[str, CellStatistics]:
    found = summarise(of, [METHOD], {METHOD: baseline}, "accuracy")
    return {cell.settings[METHOD]: cell for cell in found}


def test_differences_are_paired_by_seed() -> None:
    found = summary(cells())
    paired = np.subtract(ACCURACIES["ts"], ACCURACIES["kd"])
    scipys = stats.t.interval(0.95, 4, loc=paired.mean(), scale=stats.sem(paired))
    ts = found["ts"]
    assert ts.mean == pytest.approx(np.mean(ACCURACIES["ts"]), abs=1e-15)
    assert ts.std == pytest.approx(np.std(ACCURACIES["ts"], ddof=1), abs=1e-15)
    assert ts.difference == pytest.approx(paired.mean(), abs=1e-15)
    assert ts.interval == pytest.approx(scipys, abs=1e-12)
    assert (ts.n, ts.pairs, ts.resolved, ts.is_baseline) == (5, 5, 1, 0)
    kd, tser = found["kd"], found["tser"]
    assert (kd.is_baseline, kd.pairs) == (True, 0)
    assert kd.difference is kd.interval is kd.resolved is None
    assert tser.interval is not None and tser.interval[0] < 0 < tser.interval[1]
    assert tser.resolved == 0
    # the pairing is what is tested here
    shuffled = {**ACCURACIES, "ts": [0.92, 0.96, 0.94, 0.93, 0.93]}
    again = summary(cells(shuffled))["ts"]
    assert again.difference == pytest.approx(ts.difference, abs=1e-12)
    assert again.interval != pytest.approx(ts.interval, abs=1e-4)


def test_only_seeds_that_both_have_are_paired() -> None:
    lacking = cells()
    del lacking["kd",][1], lacking["ts",][3]
    found = summary(lacking)
    assert (found["kd"].n, found["ts"].n, found["ts"].pairs) == (4, 4, 3)
    paired = [ACCURACIES["ts"][s] - ACCURACIES["kd"][s] for s in (0, 2, 4)]
    assert found["ts"].difference == pytest.approx(statistics.fmean(paired), abs=1e-15)
    values = [0.93, 0.94, 0.93, 0.92]
    assert found["ts"].mean == pytest.approx(statistics.fmean(values), abs=1e-15)


def test_one_finished_seed_and_none() -> None:
    found = summary({("kd",): {0: 0.9}, ("ts",): {0: 0.92}, ("ce",): {}})
    assert found["ts"].difference == pytest.approx(0.02, abs=1e-15)
    assert found["ts"].std is found["ts"].interval is found["ts"].resolved is None
    assert found["ce"].n == found["ce"].pairs == 0
    assert found["ce"].mean is found["ce"].std is found["ce"].difference is None


def test_a_partial_baseline_compares_cells_alike_in_the_rest() -> None:
    made = {
        (m, t): {s: base + 0.001 * s * s * int(t) for s in range(3)}
        for m, t, base in [("kd", "1", 0.8), ("ts", "1", 0.82), ("kd", "2", 0.9), ("ts", "2", 0.95)]
    }
    found = summarise(made, [METHOD, STEPS], {METHOD: "kd"}, "accuracy")
    shown = {tuple(cell.settings.values()): cell for cell in found}
    assert shown["ts", "1"].difference == pytest.approx(0.02, abs=1e-12)
    assert shown["ts", "2"].difference == pytest.approx(0.05, abs=1e-12)
    assert [cell.is_baseline for cell in found] == [True, False, True, False]


def test_a_row_of_summary_csv_says_the_same_again(tmp_path: Path) -> None:
    path, found = tmp_path / "summary.csv", list(summary(cells()).values())
    write_csv(path, [cell.row() for cell in found], by_cell([METHOD], STATISTICS))
    assert list(read_csv(path)[0]) == [
        *("method.name", "measure", "n", "accuracy_mean", "accuracy_std", "baseline"),
        *("difference_mean", "difference_low", "difference_high", "pairs", "resolved"),
        *("p_value", "p_holm", "resolved_holm", "two_way_low", "two_way_high", "p_mcnemar"),
    ]
    table = read_summary(path).to_dict("records")
    plain = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in table]
    assert [statistics_in(row, [METHOD]) for row in plain] == found


@pytest.mark.parametrize(("seeds", "verdict"), [(4, None), (5, 1)])
def test_fewer_than_five_pairs_have_an_interval_but_no_verdict(
    seeds: int, verdict: int | None
) -> None:
    few = {method: values[:seeds] for method, values in ACCURACIES.items()}
    ts = summary(cells(few))["ts"]
    assert ts.interval is not None and ts.interval[0] > 0
    assert ts.resolved == ts.resolved_holm == verdict
    assert (ts.p_value is None) == (verdict is None)


def test_verdicts_of_the_whole_table() -> None:
    found = summary(cells())
    p = {method: row.p_value for method, row in found.items()}
    paired = np.subtract(ACCURACIES["ts"], ACCURACIES["kd"])
    assert p["ts"] == pytest.approx(stats.ttest_1samp(paired, 0.0).pvalue)
    assert found["ts"].p_holm == pytest.approx(2 * p["ts"])
    assert found["tser"].p_holm == pytest.approx(p["tser"])
    assert p["kd"] is found["kd"].p_holm is found["kd"].resolved_holm is None


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
    found = summarise(cells(), [METHOD], {METHOD: "kd"}, "accuracy", right)
    kd, ts, tser = found
    differences = np.stack([answered(s, 5).astype(float) - answered(s, 0) for s in range(5)])
    assert ts.two_way == two_way_interval(differences)
    assert ts.two_way is not None and ts.two_way[0] < 0.05 < ts.two_way[1]
    for row in (kd, tser):
        assert row.two_way is row.p_mcnemar is None
    assert ts.p_mcnemar is None


def test_a_single_pair_has_mcnemar_s_test() -> None:
    right = {("kd",): {0: answered(0, 0)}, ("ts",): {0: answered(0, 6)}}
    one = cells({"kd": [0.7], "ts": [0.76]})
    ts = summarise(one, [METHOD], {METHOD: "kd"}, "accuracy", right)[1]
    assert ts.p_mcnemar == pytest.approx(2 / 2**6)
    assert ts.two_way is None
    right["kd",][0] = answered(0, 0)[:50]  # other images
    ts = summarise(one, [METHOD], {METHOD: "kd"}, "accuracy", right)[1]
    assert ts.p_mcnemar is ts.two_way is None


def test_a_baseline_of_0_is_found_among_fractions() -> None:
    made = {(weight,): dict.fromkeys(range(5), 0.5) for weight in ("0", "0.05", "0.5")}
    base, low, high = summarise(made, [WEIGHT], {WEIGHT: 0}, "accuracy")
    assert (base.settings[WEIGHT], base.is_baseline, base.pairs) == ("0", True, 0)
    assert [(cell.settings[WEIGHT], cell.pairs) for cell in (low, high)] == [
        ("0.05", 5),
        ("0.5", 5),
    ]


def test_the_deviation_is_that_of_pandas() -> None:
    draw = np.random.default_rng(0)
    for n in range(2, 40):
        values = pd.Series(draw.random(n))
        assert describe(values.to_dict(), {}, "accuracy").std == values.std()


def test_what_differs_is_told_and_nothing_else() -> None:
    documents = [{"a": 1, "b": [1, 2], "c": 2}, {"a": 1, "b": [1, 3], "c": 2.0, "d": "x"}]
    assert differing(documents) == (("b", ([1, 2], [1, 3])), ("d", (None, "x")))


def test_answers_to_the_same_images_are_set_against_each_other() -> None:
    def predictions(wrong: int, images: int = 10) -> Predictions:
        answers = np.where(np.arange(images) < wrong, 1, 0).astype(np.uint16)[:, None]
        return Predictions(np.zeros(images, np.uint16), answers, answers)

    found = disagreement(predictions(4), predictions(1))
    assert found == Disagreement(0, 3, pytest.approx(0.25))
    assert disagreement(predictions(4), predictions(1, images=11)) is None
