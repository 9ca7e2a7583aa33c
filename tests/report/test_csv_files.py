"""CSV tables: their headers, their precision, and that they are written whole."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tser_cli.base.errors import RunError
from tser_cli.energy.counts import Counts, LayerCounts, LayerFacts
from tser_cli.energy.prices import load_profile
from tser_cli.energy.table import Labels, energy_rows
from tser_cli.report import csv_files
from tser_cli.report.csv_files import (
    ENERGY,
    FRONTIER,
    INTEGER,
    LONG,
    NUMBER,
    PER_IMAGE,
    PER_TIMESTEP,
    SUMS,
    TEXT,
    TSNE,
    WIDE,
    Schema,
    ablation_exit_schema,
    ablation_schema,
    by_cell,
    early_exit_schema,
    metrics_csv,
    per_timestep_csv,
    read_csv,
    read_table,
    write_csv,
    write_energy_csv,
)

# As the design states them.
HEADER = (
    "run,dataset,split,method,teacher,student,timesteps,t,accuracy_at_t,accuracy_cumulative,"
    "correct_at_t,correct_cumulative,images,loss_at_t,entropy_at_t,confidence_at_t,"
    "teacher_accuracy,chance,p_chance,p_teacher,loss_at_t_low,loss_at_t_high,"
    "loss_cumulative,loss_cumulative_low,loss_cumulative_high,ece_at_t,ece_at_t_low,ece_at_t_high,"
    "ece_cumulative,ece_cumulative_low,ece_cumulative_high,"
    "agreement_teacher_right,agreement_teacher_wrong"
)
LABELS: dict[str, str | None] = {
    "run": "r",
    "dataset": "digits",
    "split": "test",
    "method": "tser",
    "teacher": "resnet34",
    "student": "resnet18",
}


def row(t: int, **changes: Any) -> dict[str, Any]:
    values = {
        "timesteps": 2,
        "t": t,
        "accuracy_at_t": 1 / 3,
        "accuracy_cumulative": 2 / 3,
        "correct_at_t": 1,
        "correct_cumulative": 2,
        "images": 3,
        "loss_at_t": 0.1 + 0.2,
        "entropy_at_t": 1e-300,
        "confidence_at_t": math.nextafter(1.0, 0.0),
        "teacher_accuracy": None,
        "chance": 0.1,
        "p_chance": 1e-9,
        "p_teacher": None,
    }
    return {**values, **changes}


def test_per_timestep_csv_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "per_timestep.csv"
    backwards = dict(reversed(row(1).items()))  # whatever the order in a row
    per_timestep_csv(path, [backwards, row(2, teacher_accuracy=1.0)], LABELS)
    line = "r,digits,test,tser,resnet34,resnet18,2,{t},0.3333333333333333,0.6666666666666666,1,2,3,"
    line += "0.30000000000000004,1e-300,0.9999999999999999,{teacher},0.1,1e-09"
    line += "," * 14 + "\n"
    expected = f"{HEADER}\n" + line.format(t=1, teacher="") + line.format(t=2, teacher="1.0")
    assert path.read_bytes() == expected.encode()
    assert ",".join(PER_TIMESTEP) == HEADER


def test_a_surplus_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speed"):
        per_timestep_csv(tmp_path / "table.csv", [row(1, speed=3)], LABELS)
    assert list(tmp_path.iterdir()) == []


FIELDS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.floats().map(np.float64),
    st.text(st.characters(codec="utf-8")),
)


@given(rows=st.lists(st.fixed_dictionaries({"a": FIELDS, "b": FIELDS, "c": st.just(1)})))
def test_the_bytes_are_those_of_python_s_csv_module(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_csv(folder / "ours.csv", rows, dict.fromkeys("abc", TEXT))
    with (folder / "theirs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["a", "b", "c"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    assert (folder / "ours.csv").read_bytes() == (folder / "theirs.csv").read_bytes()


@given(
    x=st.floats(allow_nan=False), y=st.text(st.characters(codec="utf-8", exclude_characters="\0\r"))
)
def test_values_come_back_as_they_were(
    x: float, y: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.csv"
    write_csv(path, [{"x": x, "y": y}], {"x": NUMBER, "y": TEXT})
    (line,) = read_csv(path)
    assert (float(line["x"]), line["y"]) == (x, y)
    assert math.copysign(1.0, float(line["x"])) == math.copysign(1.0, x)


def test_a_table_comes_back_with_its_kinds(tmp_path: Path) -> None:
    path = tmp_path / "per_timestep.csv"
    per_timestep_csv(path, [row(1, correct_at_t=None), row(2)], {**LABELS, "run": "NA"})
    table = read_table(path, PER_TIMESTEP)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == dict(PER_TIMESTEP)
    assert table["correct_at_t"].isna().tolist() == [True, False]
    assert table["correct_at_t"][1] == 1
    assert table["run"].tolist() == ["NA", "NA"]
    assert table["teacher_accuracy"].isna().all()
    assert table["loss_at_t"].tolist() == [0.1 + 0.2] * 2


@pytest.mark.parametrize(
    ("schema", "header"),
    [
        (
            ENERGY,
            "run dataset profile layer type input_kind op t timesteps images neurons_in "
            "nonzero_in firing_rate sop_events sop_value macs sop_formula neuron_updates energy_pj "
            "energy_formula_pj ann_macs ann_energy_pj ratio_snn_ann ann_frames_macs "
            "ann_frames_energy_pj",
        ),
        (PER_IMAGE, "run dataset profile image label t correct_at_t correct_cumulative energy_pj"),
        (TSNE, "network image label x y"),
        (
            early_exit_schema(2),
            "run dataset profile criterion threshold timesteps images correct "
            "accuracy accuracy_full mean_steps share_exit_1 share_exit_2 energy_pj energy_full_pj "
            "latency_ms latency_full_ms differing_images chosen_on budget_pj kept",
        ),
        (
            ablation_schema(["method.name"], 2),
            "method.name seed state accuracy teacher_accuracy "
            "best_validation_accuracy teacher_train_accuracy accuracy_at_1 accuracy_at_2 "
            "accuracy_cumulative_1 accuracy_cumulative_2 loss_at_1 loss_at_2 loss_cumulative_1 "
            "loss_cumulative_2 ece_at_1 ece_at_2 ece_cumulative_1 ece_cumulative_2 "
            "agreement_teacher_right_1 agreement_teacher_right_2 agreement_teacher_wrong_1 "
            "agreement_teacher_wrong_2 energy_pj seconds folder commit torch threads "
            "temperature weights settings events",
        ),
        (
            ablation_exit_schema(["method.name"], 2),
            "method.name seed chosen_on accuracy_margin target_accuracy threshold accuracy "
            "energy_pj accuracy_full energy_full_pj latency_ms latency_full_ms "
            "mean_steps share_exit_1 share_exit_2",
        ),
        (
            by_cell(["method.name"], FRONTIER),
            "method.name point threshold n energy_pj energy_low_pj energy_high_pj accuracy "
            "accuracy_low accuracy_high",
        ),
    ],
)
def test_the_headers(schema: Schema, header: str) -> None:
    assert " ".join(schema) == header


def test_no_row_is_a_header_alone(tmp_path: Path) -> None:
    metrics_csv(tmp_path / "metrics.csv", [])
    assert (tmp_path / "metrics.csv").read_text() == "epoch\n"
    rows = [{"epoch": n, "loss": n / 7, "validation_accuracy": None} for n in (1, 2)]
    metrics_csv(tmp_path / "metrics.csv", rows)  # the columns of the first row
    text = f"epoch,loss,validation_accuracy\n1,{1 / 7!r},\n2,{2 / 7!r},\n"
    assert (tmp_path / "metrics.csv").read_text() == text
    epochs = {"epoch": INTEGER}
    assert read_table(tmp_path / "metrics.csv", epochs)["loss"].tolist() == [1 / 7, 2 / 7]
    assert read_table(tmp_path / "metrics.csv", epochs, TEXT)["loss"][0] == repr(1 / 7)
    per_timestep_csv(tmp_path / "table.csv", [], LABELS)
    assert (tmp_path / "table.csv").read_text() == f"{HEADER}\n"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "metrics.csv"
    metrics_csv(path, [{"epoch": 1}])
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "replace", full)))
        with pytest.raises(RunError, match="No space left on device") as error:
            metrics_csv(path, [{"epoch": 1}, {"epoch": 2}])
    assert str(path) in str(error.value)
    assert path.read_text() == "epoch\n1\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]
    metrics_csv(path, [{"epoch": 1}, {"epoch": 2}])
    assert path.read_text() == "epoch\n1\n2\n"


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


def test_the_wide_form_has_a_column_a_step_and_the_long_form_none_without_steps(
    rows: list[dict[str, object]], tmp_path: Path
) -> None:
    write_energy_csv(tmp_path / "wide.csv", rows, WIDE)
    wide = pd.read_csv(tmp_path / "wide.csv").set_index("layer")
    assert wide.loc["one", ["sop_value_1", "sop_value_2", "sop_value_3"]].tolist() == [6, 2, 4]
    assert wide.loc["two", "firing_rate_2"] == 0
    # the ANN has 12 multiply-accumulates a layer, once
    assert wide["ann_macs"].sum() == 24
    assert "t" not in wide
    write_energy_csv(tmp_path / "long.csv", rows, LONG)
    long = pd.read_csv(tmp_path / "long.csv")
    assert long["t"].tolist() == [1, 2, 3, 1, 2, 3]
    assert not {"ann_macs", "ann_energy_pj", "ratio_snn_ann"} & set(long)


def test_a_table_of_too_many_fields_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    monkeypatch.setattr(csv_files, "MOST_FIELDS", 6)
    assert len(read_csv(path)) == 2
    monkeypatch.setattr(csv_files, "MOST_FIELDS", 5)
    with pytest.raises(ValueError, match="more than 5 fields"):
        read_csv(path)
