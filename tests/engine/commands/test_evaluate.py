"""Measuring a finished run again."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Told, make_config, make_context
from tests.engine.results import RESULT
from tser_cli.base.errors import ConfigError, DiskFullError
from tser_cli.base.files import check_folder, write_error
from tser_cli.energy.joules import ann_macs
from tser_cli.engine.commands import evaluate
from tser_cli.engine.commands.evaluate import EvaluateResult, evaluate_run, parse_timesteps
from tser_cli.engine.evaluation.evaluate import evaluate_split
from tser_cli.engine.runs import folder, networks, opened
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import open_finished
from tser_cli.engine.runs.weights import load_model
from tser_cli.models.base import Classifier
from tser_cli.report.csv_files import PER_TIMESTEP, read_csv
from tser_cli.report.statistics import proportions_p
from tser_cli.settings.options import EvaluateRequest

Finished = Callable[..., Run]


@pytest.fixture
def finished(
    tmp_path: Path, wake: Callable[[Classifier], Classifier], monkeypatch: pytest.MonkeyPatch
) -> Finished:
    """`finished("student")`: a run of two steps whose network is random, on the tiny data."""
    monkeypatch.setattr(opened, "prepare", make_context)

    def make(kind: str, result: dict[str, object] | None = None) -> Run:
        config = make_config({"data.validation_fraction": 0.25})
        run = folder.create(tmp_path, kind, config)
        spec, spiking = make_context(config).dataset.spec, kind == "student"
        model = wake(networks.build("resnet20", spec, config, spiking))
        networks.write(run.model_file, model, "resnet20", spec, config)
        run.update_status(state="finished", finished="2025-01-01T00:00:00+00:00")
        if result is not None:
            run.update_status(result={**RESULT, **result})
        return run

    return make


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        *(("", [1, 2, 3]), ("4", [1, 2, 3, 4]), ("3-4", [3, 4]), ("4,1,4", [1, 4])),
        *(("1-2, 5 , 7 - 8", [1, 2, 5, 7, 8]), ("1024", list(range(1, 1025)))),
    ],
)
def test_time_steps_that_can_be_asked_for(text: str, steps: list[int]) -> None:
    assert parse_timesteps(text, 3) == steps


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("two", "1-", "-1", "1,,2", ",", " ", "1.5", "1-2-3", "123456"), "write 4, 1-6 or 1,2,4"),
        (("0", "0-3", "4-2", "1025", "1-1025", "1,0"), "steps run from 1 to 1024, upwards"),
    ],
)
def test_time_steps_that_are_none(texts: tuple[str, ...], said: str) -> None:
    for text in texts:
        with pytest.raises(ConfigError, match=said):
            parse_timesteps(text, 2)


def evaluated(run: Run, **asked: Any) -> EvaluateResult:
    return evaluate_run(EvaluateRequest(run=run.folder, **asked))


def measured(run: Run, **asked: Any) -> list[dict[str, str]]:
    """The table of `run`, as it lies on disk."""
    return read_csv(evaluated(run, **asked).table)


def test_the_run_s_own_table_is_written_again(
    finished: Finished, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished("student", result={"teacher_accuracy": 0.75})
    run.update_environment(teacher={"model": "resnet34", "source": "gone", "sha256": ""})
    result = evaluated(run, progress=told)
    assert result.table == run.folder / "per_timestep.csv"
    rows = read_csv(result.table)
    assert tuple(rows[0]) == tuple(PER_TIMESTEP)
    assert [row["t"] for row in rows] == ["1", "2"]
    for row in rows:
        labels = (row["run"], row["method"], row["teacher"], row["student"], row["split"])
        assert labels == (run.name, "tser", "resnet34", "resnet20", "test")
        assert (row["images"], row["teacher_accuracy"]) == ("11", "0.75")
        assert float(row["accuracy_at_t"]) == int(row["correct_at_t"]) / 11
        # the fixture's record has no test of its own: 8.25 of 11 are 8, by a test of proportions
        right = int(row["correct_cumulative"])
        assert float(row["p_teacher"]) == proportions_p(right, 11, 8, 11)
    assert told.warnings == []
    assert (result.name, result.split, result.figure) == (run.name, "test", None)
    assert (result.early_exit_rows, result.early_exit_table) == ([], None)
    for row, written in zip(result.rows, read_csv(result.table), strict=True):
        assert {name: float(written[name]) if written[name] else None for name in row} == row
    assert not (run.folder / "early_exit.csv").exists()
    assert capsys.readouterr() == ("", "")  # a command prints nothing


def test_other_steps_go_into_a_table_of_their_own(finished: Finished) -> None:
    run = finished("student")
    own = measured(run)
    result = evaluated(run, timesteps="1,2,5", plot=True)
    assert result.table == run.folder / "per_timestep_test_T1-2-5.csv"
    more = read_csv(result.table)
    assert [row["t"] for row in more] == ["1", "2", "5"]
    assert [row["t"] for row in result.rows] == [1, 2, 5]
    assert [row["correct_at_t"] for row in more[:2]] == [row["correct_at_t"] for row in own]
    assert result.figure == run.folder / "figures" / "per_timestep_test_T1-2-5.png"
    assert result.figure.read_bytes().startswith(b"\x89PNG")


def test_other_splits(finished: Finished) -> None:
    result = evaluated(finished("student"), split="validation")
    assert result.table.name == "per_timestep_validation_T2.csv"
    rows = read_csv(result.table)
    assert {(row["images"], row["split"]) for row in rows} == {("6", "validation")}


@pytest.mark.parametrize("changes", [{"training.precision": "bf16"}, {"data.dir": "elsewhere"}])
def test_measured_otherwise_the_run_s_own_table_stays(
    finished: Finished, changes: dict[str, str]
) -> None:
    run = finished("student")
    result = evaluated(run, settings=changes)
    assert result.table == run.folder / "per_timestep_test_T2.csv"
    assert not (run.folder / "per_timestep.csv").exists()


def test_the_table_can_go_elsewhere(finished: Finished, tmp_path: Path) -> None:
    run, output = finished("student"), tmp_path / "elsewhere.csv"
    exits = tmp_path / "elsewhere_early_exit.csv"
    result = evaluated(run, output=output, early_exit="0.5")
    assert (result.table, result.early_exit_table) == (output, exits)
    assert (len(read_csv(output)), len(read_csv(exits))) == (2, 1)
    assert not list(run.folder.glob("*.csv"))


def test_early_exit_is_measured_on_the_split(finished: Finished) -> None:
    run = finished("student")
    asked = {"timesteps": "3", "early_exit": "1.0", "early_exit_entropy": "0.1,0.5"}
    result = evaluated(run, split="validation", **asked)
    assert result.early_exit_table == run.folder / "early_exit_validation.csv"
    rows = read_csv(result.early_exit_table)
    assert [(row["criterion"], row["threshold"]) for row in rows] == [
        *(("confidence", "1.0"), ("entropy", "0.1"), ("entropy", "0.5"))
    ]
    for row, shown in zip(rows, result.early_exit_rows, strict=True):
        assert (row["run"], row["images"], row["timesteps"]) == (run.name, "6", "3")
        assert float(row["accuracy_full"]) == result.rows[-1]["accuracy_cumulative"]
        assert float(row["energy_pj"]) == shown["energy_pj"]
        assert row["differing_images"] == "0"


def exit_energies(run: Run) -> tuple[float, float]:
    """What stopping every image at the first step and at the last one costs, in the mean."""
    (row,) = evaluated(run, early_exit="1e-6").early_exit_rows
    return row["energy_pj"], row["energy_full_pj"]


def test_a_budget_is_kept_by_early_exit(finished: Finished, told: Any) -> None:
    run = finished("student")
    first, whole = exit_energies(run)
    loose = evaluated(run, energy_budget="1J", progress=told)
    (row,) = loose.early_exit_rows
    assert (row["threshold"], row["chosen_on"], row["budget_pj"]) == (math.inf, "validation", 1e12)
    assert row["energy_pj"] == row["energy_full_pj"] == whole
    assert loose.kept and told.warnings == []
    assert loose.early_exit_table == run.folder / "early_exit.csv"
    (written,) = read_csv(loose.early_exit_table)
    assert (written["threshold"], written["kept"]) == ("inf", "1")
    between = f"{(first + whole) / 2}pJ"
    (row,) = evaluated(run, energy_budget=between).early_exit_rows
    assert row["share_exit_1"] > 0
    assert row["energy_pj"] < whole
    assert row["differing_images"] == 0


def test_a_budget_is_a_share_of_the_ann_of_the_same_shape(finished: Finished) -> None:
    run = finished("student")
    request = EvaluateRequest(run=run.folder, energy_budget="50%", early_exit="0.5")
    own, chosen = evaluate_run(request).early_exit_rows
    opened = open_finished(run, {}, request.progress)
    full = evaluate_split(opened.loaded.model, opened.context, "test", 2, count=True)
    assert full.counts is not None
    assert chosen["budget_pj"] == ann_macs(full.counts) * 4.6 / 2
    assert (own["threshold"], own["budget_pj"], own["kept"]) == (0.5, None, None)


def test_a_budget_that_the_test_images_do_not_keep(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("student")
    first, whole = exit_energies(run)
    monkeypatch.setattr(evaluate.early_exit, "keep_budget", lambda *rest: math.inf)
    result = evaluated(run, energy_budget=f"{(first + whole) / 2}pJ")
    assert not result.kept
    assert result.early_exit_rows[0]["kept"] == 0


def test_a_run_that_held_nothing_out_chooses_on_training_images(
    finished: Finished, told: Any
) -> None:
    run = finished("student")
    nothing = {"data.validation_fraction": 0.0}
    (row,) = evaluated(run, energy_budget="1J", settings=nothing, progress=told).early_exit_rows
    assert row["chosen_on"] == "train"
    (warning,) = told.warnings
    assert warning.startswith("the run held no images out: the threshold is chosen on training")


def test_a_budget_below_the_first_step_is_refused(finished: Finished) -> None:
    run = finished("student")
    with pytest.raises(ConfigError, match="--energy-budget: the first time step alone costs"):
        evaluated(run, energy_budget="1pJ")
    with pytest.raises(ConfigError, match=r"--energy-budget: .* an ANN without time steps"):
        evaluated(finished("teacher"), energy_budget="1J")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"split": "dev"}, '--split "dev": use one of test, validation, train'),
        ({"energy_budget": "3"}, '--energy-budget: "3" is no energy'),
        ({"energy_budget": "3uJ", "split": "validation"}, "leave --split validation out"),
        ({"early_exit": "2"}, "--early-exit 2: a confidence is above 0"),
        ({"early_exit_entropy": "low"}, '--early-exit-entropy: "low" is no threshold'),
        ({"profile": "horowits-45nm-fp32"}, "horowitz-45nm-fp32"),
    ],
)
def test_what_is_mistyped_is_refused_before_the_work(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], said: str
) -> None:
    run = finished("student")
    monkeypatch.setattr(opened, "prepare", lambda *rest: pytest.fail("it was opened"))
    with pytest.raises(ConfigError, match=said):
        evaluated(run, **asked)


def test_a_teacher_has_one_step(finished: Finished) -> None:
    run = finished("teacher")
    (row,) = measured(run, timesteps="1")
    assert (row["teacher"], row["student"], row["method"]) == ("resnet20", "", "ce")
    assert (row["timesteps"], row["teacher_accuracy"]) == ("1", "")
    with pytest.raises(ConfigError, match="is a teacher, an ANN without time steps"):
        evaluated(run, timesteps="2")
    with pytest.raises(ConfigError, match=r"--early-exit: .* an ANN without time steps"):
        evaluated(run, early_exit="0.5")


def test_the_teacher_is_measured_again_on_other_splits(finished: Finished, told: Any) -> None:
    teacher = finished("teacher")
    student = finished("student", result={"teacher_accuracy": 0.123})
    source = str(teacher.model_file)
    digest = load_model(teacher.model_file)[2]
    student.update_environment(teacher={"model": "resnet20", "source": source, "sha256": digest})
    rows = measured(student, split="train", progress=told)
    alone = measured(teacher, split="train", progress=told)
    assert {row["teacher_accuracy"] for row in rows} == {alone[0]["accuracy_cumulative"]}
    assert told.warnings == []
    # neither one that has changed nor one that is gone is measured
    student.update_environment(teacher={"model": "resnet20", "source": source, "sha256": "0"})
    for said in ("has changed since that run began", source):
        rows = measured(student, split="train", progress=told)
        assert {row["teacher_accuracy"] for row in rows} == {""}
        assert "the teacher's accuracy is left out" in told.warnings[-1]
        assert said in told.warnings[-1]
        teacher.model_file.unlink(missing_ok=True)
    assert len(told.warnings) == 2


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """`refusing(folder, errno.EROFS)`: files in that folder can't be written from now on."""

    def refuse(folder: Path, code: int) -> None:
        def check(path: Path) -> None:
            if path.parent == folder:
                raise write_error(path, OSError(code, os.strerror(code)))
            check_folder(path)

        monkeypatch.setattr(evaluate, "check_folder", check)

    return refuse


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_can_t_be_written_to_is_measured_all_the_same(
    finished: Finished, refusing: Callable[[Path, int], None], told: Any
) -> None:
    run = finished("student")
    before = contents(run.folder)
    refusing(run.folder, errno.EROFS)
    result = evaluated(run, early_exit="0.5", plot=True, progress=told)
    assert [row["t"] for row in result.rows] == [1, 2]
    assert len(result.early_exit_rows) == 1
    assert (result.table, result.figure, result.early_exit_table) == (None, None, None)
    assert contents(run.folder) == before
    (warning,) = told.warnings
    assert warning.startswith(f"nothing was saved: {run.folder}")
    assert os.strerror(errno.EROFS) in warning


def test_another_place_is_written_to(
    finished: Finished, refusing: Callable[[Path, int], None], told: Any, tmp_path: Path
) -> None:
    run, output = finished("student"), tmp_path / "out.csv"
    refusing(run.folder, errno.EROFS)
    result = evaluated(run, output=output, progress=told)
    assert len(read_csv(output)) == 2
    assert (result.table, told.warnings) == (output, [])
    evaluated(run, output=output, plot=True, progress=told)
    assert told.warnings[0].startswith("no figure was saved")


def test_a_full_disk_is_told(finished: Finished, refusing: Callable[[Path, int], None]) -> None:
    run = finished("student")
    refusing(run.folder, errno.ENOSPC)
    with pytest.raises(DiskFullError, match="Free some space"):
        evaluated(run)


def test_another_precision_says_what_it_changes(finished: Finished, told: Told) -> None:
    step = {"accuracy_at_t": 0.5, "accuracy_cumulative": 0.5, "correct_cumulative": 5, "images": 11}
    known = [{**step, "t": t} for t in (1, 2)]
    run = finished("student", result={"timesteps": 2, "per_timestep": known})
    for changes in ({}, {"training.precision": "fp32"}):
        evaluated(run, settings=changes, progress=told)
    assert not told.said
    changes = {"training.precision": "bf16"}
    result = evaluated(run, settings=changes, progress=told)
    right = result.rows[-1]["correct_cumulative"]
    assert told.said == [
        f"in bf16 {right} of 11 images are right, {right - 5:+d} against fp32, in which the run "
        "was measured"
    ]
