"""CSV tables: their headers, their precision, and that they are written whole."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tser_cli.errors import RunError
from tser_cli.report.csv_files import (
    PER_TIMESTEP,
    metrics_csv,
    per_timestep_csv,
    read_csv,
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
    write_csv(path, [{"x": value}], ["x"])
    (line,) = read_csv(path)
    assert math.copysign(1.0, float(line["x"])) == math.copysign(1.0, value)
    assert float(line["x"]) == value


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1))
def test_texts_come_back_as_they_were(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "text.csv"
    write_csv(path, [{"x": text, "y": 1}], ["x", "y"])
    assert read_csv(path) == [{"x": text, "y": "1"}]


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
        write_csv(tmp_path / "missing" / "table.csv", [], ["x"])
