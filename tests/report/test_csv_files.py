"""CSV tables: their headers, their precision, and that they are written whole."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tser_cli.base.errors import RunError
from tser_cli.report.csv_files import (
    ENERGY,
    EXIT_STATISTICS,
    FRONTIER,
    INTEGER,
    NUMBER,
    PER_IMAGE,
    PER_TIMESTEP,
    STATISTICS,
    TEXT,
    TSNE,
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
)

# As the design states them.
HEADER = (
    "run,dataset,split,method,teacher,student,timesteps,t,accuracy_at_t,accuracy_cumulative,"
    "correct_at_t,correct_cumulative,images,loss_at_t,entropy_at_t,confidence_at_t,teacher_accuracy"
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
    }
    return {**values, **changes}


def test_per_timestep_csv_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "per_timestep.csv"
    per_timestep_csv(path, [row(1), row(2, teacher_accuracy=1.0)], LABELS)
    line = "r,digits,test,tser,resnet34,resnet18,2,{t},0.3333333333333333,0.6666666666666666,1,2,3,"
    line += "0.30000000000000004,1e-300,0.9999999999999999,{teacher}\n"
    expected = f"{HEADER}\n" + line.format(t=1, teacher="") + line.format(t=2, teacher="1.0")
    assert path.read_bytes() == expected.encode()
    assert ",".join(PER_TIMESTEP) == HEADER


def test_the_columns_stand_in_their_order_whatever_the_rows_order(tmp_path: Path) -> None:
    backwards = dict(reversed(row(1).items()))
    per_timestep_csv(tmp_path / "a.csv", [backwards], LABELS)
    per_timestep_csv(tmp_path / "b.csv", [row(1)], LABELS)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_surplus_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speed"):
        per_timestep_csv(tmp_path / "table.csv", [row(1, speed=3)], LABELS)
    assert list(tmp_path.iterdir()) == []


@given(value=st.floats(allow_nan=False))
def test_floats_come_back_as_they_were(
    value: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "float.csv"
    write_csv(path, [{"x": value}], {"x": NUMBER})
    (line,) = read_csv(path)
    assert math.copysign(1.0, float(line["x"])) == math.copysign(1.0, value)
    assert float(line["x"]) == value


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1))
def test_texts_come_back_as_they_were(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "text.csv"
    write_csv(path, [{"x": text, "y": 1}], {"x": TEXT, "y": INTEGER})
    assert read_csv(path) == [{"x": text, "y": "1"}]


def by_the_csv_module(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> bytes:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path.read_bytes()


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
    expected = by_the_csv_module(folder / "theirs.csv", rows, ["a", "b", "c"])
    assert (folder / "ours.csv").read_bytes() == expected


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


def test_columns_beyond_the_schema_are_numbers_or_as_told(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("epoch,loss\n1,0.5\n2,nan\n")
    assert read_table(path, {"epoch": INTEGER})["loss"].tolist()[0] == 0.5
    assert read_table(path, {"epoch": INTEGER}, others=TEXT)["loss"].tolist() == ["0.5", "nan"]


@pytest.mark.parametrize(
    ("schema", "header"),
    [
        (
            ENERGY,
            "run dataset profile layer type input_kind op t timesteps images neurons_in "
            "nonzero_in firing_rate sop_events sop_value macs sop_formula neuron_updates energy_pj "
            "energy_formula_pj ann_macs ann_energy_pj ratio_snn_ann",
        ),
        (PER_IMAGE, "run dataset profile image label t correct_at_t correct_cumulative energy_pj"),
        (TSNE, "network image label x y"),
        (
            early_exit_schema(2),
            "run dataset profile criterion threshold timesteps images correct "
            "accuracy accuracy_full mean_steps share_exit_1 share_exit_2 energy_pj energy_full_pj "
            "differing_images chosen_on budget_pj kept",
        ),
        (
            ablation_schema(["method.name"], 2),
            "method.name seed state accuracy teacher_accuracy "
            "best_validation_accuracy accuracy_at_1 accuracy_at_2 accuracy_cumulative_1 "
            "accuracy_cumulative_2 energy_pj seconds folder commit torch threads "
            "temperature weights settings",
        ),
        (by_cell(["method.name"], STATISTICS), f"method.name {' '.join(STATISTICS)}"),
        (
            ablation_exit_schema(["method.name"], 2),
            "method.name seed chosen_on accuracy_margin target_accuracy threshold accuracy "
            "energy_pj accuracy_full energy_full_pj mean_steps share_exit_1 share_exit_2",
        ),
        (by_cell(["method.name"], EXIT_STATISTICS), f"method.name {' '.join(EXIT_STATISTICS)}"),
        (
            by_cell(["method.name"], FRONTIER),
            "method.name point threshold n energy_pj energy_low_pj energy_high_pj accuracy "
            "accuracy_low accuracy_high",
        ),
    ],
)
def test_the_headers(schema: Schema, header: str) -> None:
    assert " ".join(schema) == header


def test_metrics_csv_takes_the_columns_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = [{"epoch": n, "loss": n / 7, "validation_accuracy": None} for n in (1, 2)]
    metrics_csv(path, rows)
    with path.open(newline="") as stream:
        lines = list(csv.reader(stream))
    assert lines == [
        ["epoch", "loss", "validation_accuracy"],
        ["1", repr(1 / 7), ""],
        ["2", repr(2 / 7), ""],
    ]


def test_no_row_is_a_header_alone(tmp_path: Path) -> None:
    metrics_csv(tmp_path / "metrics.csv", [])
    assert (tmp_path / "metrics.csv").read_text() == "epoch\n"
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


def test_a_table_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"missing/table\.csv can't be written"):
        write_csv(tmp_path / "missing" / "table.csv", [], {"x": NUMBER})
