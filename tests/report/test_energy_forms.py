"""Forms of energy.csv: what a column's sum is in each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tser_cli.energy.counts import Counts, LayerCounts, LayerFacts
from tser_cli.energy.prices import load_profile
from tser_cli.energy.table import Labels, energy_rows
from tser_cli.report.csv_files import LONG, SUMS, WIDE, write_energy_csv


def layer_counts(name: str, spikes_T: list[int]) -> LayerCounts:
    """A linear layer of 6 inputs and 2 outputs that one image feeds with so many spikes."""
    layer = LayerFacts(
        name, "linear", "spikes", 6, 2, macs=12, macs_formula=12, weight_bytes=4, bias_bytes=0
    )
    nonzero_TI = np.array(spikes_T)[:, None]
    return LayerCounts(layer, 0, np.ones(3, np.int64), nonzero_TI, 2 * nonzero_TI, 2 * nonzero_TI)


@pytest.fixture
def rows() -> list[dict[str, object]]:
    """Two layers of three steps: (3 + 1 + 2) and (2 + 0 + 1) spikes x 2 outputs = 18 SOP."""
    counts = Counts(3, 1, (layer_counts("one", [3, 1, 2]), layer_counts("two", [2, 0, 1])))
    profile = load_profile("horowitz-45nm-fp32")
    return energy_rows(counts, profile, Labels("run", "digits", "", "fp32"))


@pytest.mark.parametrize(
    ("form", "rows_of_it", "sop"), [(SUMS, 12, 72), (LONG, 6, 18), (WIDE, 2, 18)]
)
def test_what_the_sum_of_a_column_is(
    rows: list[dict[str, object]], tmp_path: Path, form: str, rows_of_it: int, sop: int
) -> None:
    write_energy_csv(tmp_path / "energy.csv", rows, form)
    table = pd.read_csv(tmp_path / "energy.csv")
    assert (len(table), table["sop_value"].sum()) == (rows_of_it, sop)
    assert table["energy_pj"].sum() == pytest.approx(0.9 * sop)


def test_the_wide_form_has_a_column_a_step(rows: list[dict[str, object]], tmp_path: Path) -> None:
    write_energy_csv(tmp_path / "energy.csv", rows, WIDE)
    table = pd.read_csv(tmp_path / "energy.csv").set_index("layer")
    assert table.loc["one", ["sop_value_1", "sop_value_2", "sop_value_3"]].tolist() == [6, 2, 4]
    assert table.loc["two", "firing_rate_2"] == 0
    # the ANN has 12 multiply-accumulates a layer, once
    assert table["ann_macs"].sum() == 24
    assert "t" not in table


def test_the_long_form_leaves_out_what_has_no_steps(
    rows: list[dict[str, object]], tmp_path: Path
) -> None:
    write_energy_csv(tmp_path / "energy.csv", rows, LONG)
    table = pd.read_csv(tmp_path / "energy.csv")
    assert table["t"].tolist() == [1, 2, 3, 1, 2, 3]
    assert not {"ann_macs", "ann_energy_pj", "ratio_snn_ann"} & set(table)
