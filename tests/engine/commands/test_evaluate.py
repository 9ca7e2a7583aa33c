"""Measuring a finished run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tser_cli.config import Config
from tser_cli.engine.commands.evaluate import Evaluating, evaluate_run, parse_timesteps, written
from tser_cli.engine.runs import finished_run, model_files, run_folder
from tser_cli.engine.runs.finished_run import open_finished, select_run
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.context import Context
from tser_cli.errors import ConfigError, RunError
from tser_cli.models import Classifier
from tser_cli.report.csv_files import PER_TIMESTEP, read_csv
from tser_cli.report.progress import Silent

MakeConfig = Callable[..., Config]
Finished = Callable[..., Run]


class Told(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def finished(
    tmp_path: Path,
    make_config: MakeConfig,
    make_context: Callable[..., Context],
    wake: Callable[[Classifier], Classifier],
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> Finished:
    """`finished("student")`: a run of two steps whose network is random, on the tiny data."""
    monkeypatch.setattr(finished_run, "prepare", lambda config: make_context(config, told))

    def make(kind: str, **status: object) -> Run:
        config = make_config({"data.validation_fraction": 0.25})
        run = run_folder.create(tmp_path, kind, config)
        spec, spiking = make_context(config).dataset.spec, kind == "student"
        model = wake(model_files.build("resnet20", spec, config, spiking))
        metadata = model_files.describe("resnet20", spec, config, spiking)
        model_files.write(run.model_file, model, metadata)
        run.update_status(state="finished", finished="2025-01-01T00:00:00+00:00", **status)
        return run

    return make


@pytest.mark.parametrize(
    ("text", "trained", "steps"),
    [
        ("", 3, [1, 2, 3]),
        ("4", 2, [1, 2, 3, 4]),
        ("1", 2, [1]),
        ("1-6", 2, [1, 2, 3, 4, 5, 6]),
        ("3-4", 2, [3, 4]),
        ("2-2", 1, [2]),
        ("1,2,4", 2, [1, 2, 4]),
        ("4,1,4", 2, [1, 4]),
        ("1-2, 5 , 7 - 8", 2, [1, 2, 5, 7, 8]),
        ("1024", 1, list(range(1, 1025))),
    ],
)
def test_time_steps_that_can_be_asked_for(text: str, trained: int, steps: list[int]) -> None:
    assert parse_timesteps(text, trained) == steps


@pytest.mark.parametrize("text", ["two", "1-", "-1", "1,,2", ",", " ", "1.5", "1-2-3", "123456"])
def test_time_steps_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write 4, 1-6 or 1,2,4"):
        parse_timesteps(text, 2)


@pytest.mark.parametrize("text", ["0", "0-3", "4-2", "1025", "1-1025", "1,0"])
def test_time_steps_out_of_range(text: str) -> None:
    with pytest.raises(ConfigError, match="steps run from 1 to 1024, upwards"):
        parse_timesteps(text, 2)


def test_the_newest_student_is_measured_if_none_is_named(
    finished: Finished, tmp_path: Path
) -> None:
    finished("teacher")
    with pytest.raises(RunError, match="there is no finished student under"):
        select_run(None, tmp_path)
    student = finished("student")
    assert select_run(None, tmp_path) == student
    assert select_run(student.folder, Path("elsewhere")) == student


def test_the_run_s_own_table_is_written_again(finished: Finished, told: Told) -> None:
    run = finished("student", teacher_accuracy=0.75)
    run.update_environment(teacher={"model": "resnet34", "source": "gone", "sha256": ""})
    path = evaluate_run(Evaluating(run=run.folder))
    assert path == run.folder / "per_timestep.csv"
    rows = read_csv(path)
    assert tuple(rows[0]) == PER_TIMESTEP
    assert [row["t"] for row in rows] == ["1", "2"]
    for row in rows:
        labels = (row["run"], row["method"], row["teacher"], row["student"], row["split"])
        assert labels == (run.name, "tser", "resnet34", "resnet20", "test")
        assert (row["images"], row["teacher_accuracy"]) == ("11", "0.75")
        assert float(row["accuracy_at_t"]) == int(row["correct_at_t"]) / 11
    assert told.warnings == []


def test_other_steps_go_into_a_table_of_their_own(finished: Finished) -> None:
    run = finished("student")
    own = read_csv(evaluate_run(Evaluating(run=run.folder)))
    path = evaluate_run(Evaluating(run=run.folder, timesteps="1,2,5", plot=True))
    assert path == run.folder / "per_timestep_test_T1-2-5.csv"
    more = read_csv(path)
    assert [row["t"] for row in more] == ["1", "2", "5"]
    assert [row["correct_at_t"] for row in more[:2]] == [row["correct_at_t"] for row in own]
    figure = run.folder / "figures" / "per_timestep_test_T1-2-5.png"
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("split", "images"), [("train", "18"), ("validation", "6")])
def test_other_splits(finished: Finished, split: str, images: str) -> None:
    run = finished("student")
    path = evaluate_run(Evaluating(run=run.folder, split=split))
    assert path.name == f"per_timestep_{split}_T2.csv"
    assert {row["images"] for row in read_csv(path)} == {images}


def test_a_split_that_is_none(finished: Finished) -> None:
    with pytest.raises(ConfigError, match='--split "dev": use one of test, validation, train'):
        evaluate_run(Evaluating(run=finished("student").folder, split="dev"))


def test_the_table_can_go_elsewhere_and_be_shown(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "elsewhere.csv"
    request = Evaluating(run=finished("student").folder, output=output, per_timestep=True)
    assert evaluate_run(request) == output
    shown = capsys.readouterr().out
    assert f"table: {output}" in shown
    assert "confidence" in shown
    assert "of 11 test images after 2 time steps" in shown


def test_a_teacher_has_one_step(finished: Finished) -> None:
    run = finished("teacher")
    (row,) = read_csv(evaluate_run(Evaluating(run=run.folder, timesteps="1")))
    assert (row["teacher"], row["student"], row["method"]) == ("resnet20", "", "ce")
    assert (row["timesteps"], row["teacher_accuracy"]) == ("1", "")
    with pytest.raises(ConfigError, match="is a teacher, an ANN without time steps"):
        evaluate_run(Evaluating(run=run.folder, timesteps="2"))


def test_the_teacher_is_measured_again_on_other_splits(finished: Finished, told: Told) -> None:
    teacher, student = finished("teacher"), finished("student", teacher_accuracy=0.123)
    source = str(teacher.model_file)
    student.update_environment(teacher={"model": "resnet20", "source": source, "sha256": ""})
    rows = read_csv(evaluate_run(Evaluating(run=student.folder, split="train")))
    alone = read_csv(evaluate_run(Evaluating(run=teacher.folder, split="train")))
    assert {row["teacher_accuracy"] for row in rows} == {alone[0]["accuracy_cumulative"]}
    teacher.model_file.unlink()
    rows = read_csv(evaluate_run(Evaluating(run=student.folder, split="train")))
    assert {row["teacher_accuracy"] for row in rows} == {""}
    assert len(told.warnings) == 1
    assert source in told.warnings[0]


def test_changes_reach_the_settings(finished: Finished) -> None:
    run = finished("student")
    again = open_finished(run, {"training.eval_batch_size": 5, "training.device": None})
    assert again.config == run.config().updated({"training.eval_batch_size": 5})
    assert not again.loaded.model.training
    assert json.loads((run.folder / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("steps", "text"), [([1], "1"), ([1, 2, 3, 4], "4"), ([1, 2, 4], "1-2-4"), ([2, 3], "2-3")]
)
def test_other_time_steps_have_another_file_name(steps: list[int], text: str) -> None:
    assert written(steps) == text
