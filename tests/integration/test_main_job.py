"""The main job on real data: teacher, students, evaluation, all through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.command import call

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("integration")]

RECIPE = """
[data]
name = "digits"
[optimizer]
lr = 0.1
[schedule]
name = "onecycle"
warmup_epochs = 1
[training]
epochs = {epochs}
batch_size = 32
tensorboard = false
"""


def table(run: Path) -> list[dict[str, str]]:
    with (run / "per_timestep.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, trained on demand, and two students of it, of which one only to compare with."""
    folder = tmp_path_factory.mktemp("main")
    (folder / "teacher.toml").write_text(RECIPE.format(epochs=3))
    (folder / "student.toml").write_text(RECIPE.format(epochs=4))
    for method, more in (("tser", ()), ("ce", ("--epochs", "1", "-T", "1"))):
        assert not call(
            *("distill", "--recipe", str(folder / "student.toml"), "--method", method),
            *("--teacher", "resnet20", "--student", "resnet20", *(more or ("-T", "2"))),
            *("--set", f"model.teacher_recipe={folder / 'teacher.toml'}"),
            *("--runs-dir", str(folder / "runs")),
        )
    return folder / "runs"


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_the_student_learns_and_its_run_folder_is_complete(runs: Path) -> None:
    run = only(runs, "student/digits/*tser*")
    assert float(table(run)[-1]["accuracy_cumulative"]) > 0.6  # chance is 0.1
    assert float(table(run)[-1]["teacher_accuracy"]) > 0.9
    for name in ("config.toml", "environment.json", "status.json", "metrics.csv"):
        assert (run / name).is_file()
    assert (run / "figures" / "per_timestep.png").is_file()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 5)]
    assert {"loss", "ce", "kd", "entropy", "train_accuracy"} <= set(rows[0])
    for row in table(run):
        assert row["images"] == "360"
        assert float(row["accuracy_at_t"]) == int(row["correct_at_t"]) / 360
        assert float(row["accuracy_cumulative"]) == int(row["correct_cumulative"]) / 360


def test_evaluate_gives_the_same_table_again(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = only(runs, "student/digits/*tser*")
    before = table(run)
    assert call("evaluate", "--run", str(run), "--per-timestep", "--batch-size", "77") == 0
    after = table(run)
    for old, new in zip(before, after, strict=True):
        assert old["correct_at_t"] == new["correct_at_t"]
        assert old["correct_cumulative"] == new["correct_cumulative"]
        assert old["teacher_accuracy"] == new["teacher_accuracy"]
    assert "cumulative" in capsys.readouterr().out
    assert call("evaluate", "--run", str(only(runs, "teacher/digits/*")), "--per-timestep") == 0
    assert "accuracy" in capsys.readouterr().out


def test_evaluate_at_other_timesteps_agrees_on_the_first(runs: Path, tmp_path: Path) -> None:
    run = only(runs, "student/digits/*tser*")
    output = tmp_path / "more.csv"
    assert call("evaluate", "--run", str(run), "--timesteps", "1-4", "--output", str(output)) == 0
    with output.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["t"] for row in rows] == ["1", "2", "3", "4"]
    for old, new in zip(table(run), rows, strict=False):
        assert old["correct_at_t"] == new["correct_at_t"]


def test_a_run_is_its_own_recipe(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = only(runs, "student/digits/*tser*")
    assert call("distill", "--recipe", str(run), "--runs-dir", str(runs), "--dry-run") == 0
    out = capsys.readouterr().out
    assert "steps: 44 an epoch, 176 in all" in out
    assert 'name = "onecycle"' in out


def test_results_as_json(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = ("--run", str(only(runs, "student/digits/*tser*")), "--json", "--quiet")
    capsys.readouterr()
    assert call("evaluate", *run) == 0
    evaluation = capsys.readouterr()
    assert evaluation.err == ""
    assert [row["t"] for row in json.loads(evaluation.out)["rows"]] == [1, 2]
    assert call("energy", str(tmp_path / "a.csv"), "--conventions", "--images", "20", *run) == 0
    energy = json.loads(capsys.readouterr().out)
    assert energy["document"]["totals"]["energy_pj"] > 0
    assert energy["beyond"]["conventions"]
    again = ("distill", "--recipe", run[1], "--runs-dir", str(runs))
    assert call(*again, "--dry-run", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 176
    assert call("runs", "--runs-dir", str(runs), "--json", "kind=student") == 0
    assert {entry["method"] for entry in json.loads(capsys.readouterr().out)} == {"tser", "ce"}


def test_two_methods_side_by_side(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(only(runs, f"student/digits/*_{method}_*")) for method in ("tser", "ce")]
    assert call("compare", *names, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "method.name" in [key for key, _ in found["settings"]]
    assert 0.0 < found["runs"][1]["p_value"] <= 1.0


def test_a_run_is_named_by_its_beginning(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "--run", "resnet20_T1_ce", "--runs-dir", str(runs), "-v") == 0
    captured = capsys.readouterr()
    assert f"run: {only(runs, 'student/digits/*_ce_*')}" in captured.err
    assert "of 360 test images right" in captured.out
