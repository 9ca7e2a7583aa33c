"""distil and train-teacher, from the settings to the folder of a run."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from tests.engine.conftest import make_config, make_context, write_network
from tser_cli.base.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError, RunError
from tser_cli.base.progress import Silent
from tser_cli.engine.commands import train
from tser_cli.engine.commands.train import train_teacher_in
from tser_cli.engine.evaluation import evaluate
from tser_cli.engine.runs import find, folder
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.runs.record import RunResult, find_result
from tser_cli.engine.runs.runtime import PATIENCE, Runtime
from tser_cli.engine.runs.weights import load_model
from tser_cli.engine.training import settle, state, task
from tser_cli.engine.training.run import student_task, teacher_task
from tser_cli.losses.base import Outputs
from tser_cli.models.base import Build
from tser_cli.report.csv_files import PER_TIMESTEP, read_csv
from tser_cli.settings import registry

Distil = Callable[..., RunResult]


@pytest.fixture
def distil(monkeypatch: pytest.MonkeyPatch) -> Distil:
    """`distil(config, options)`: the command on the tiny data."""
    monkeypatch.setattr(settle, "prepare", make_context)
    return train.distill


def only(folder: Path, kind: str) -> Run:
    (found,) = (run for run, _ in find.all_runs(folder, kind))
    return found


def test_a_student_is_distilled_from_a_file_and_its_result_is_what_its_files_say(
    distil: Distil, teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config({"model.teacher": str(teacher_file), "training.epochs": 1})
    result = distil(config, Options(tmp_path / "runs"))
    made = only(tmp_path / "runs", "student")
    assert result.folder == made.folder
    recorded = made.environment()["teacher"]
    _, _, digest = load_model(teacher_file)
    assert recorded == {"source": str(teacher_file), "model": "resnet20", "sha256": digest}
    rows = read_csv(made.folder / "per_timestep.csv")
    assert [(row["t"], row["teacher"], row["student"]) for row in rows] == [
        ("1", "resnet20", "resnet20"),
        ("2", "resnet20", "resnet20"),
    ]
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")  # a command prints nothing
    # the result is what the files say
    (epoch,) = read_csv(result.folder / "metrics.csv")
    energy = read_csv(result.folder / "energy.csv")
    (total,) = [row for row in energy if (row["layer"], row["t"]) == ("TOTAL", "all")]
    assert (result.kind, result.model, result.method) == ("student", "resnet20", "tser")
    assert (result.dataset, result.timesteps, result.images) == ("digits", 2, 11)
    assert result.accuracy == float(rows[-1]["accuracy_cumulative"])
    assert result.teacher == "resnet20"
    assert result.teacher_accuracy == float(rows[-1]["teacher_accuracy"])
    assert result.energy_pj == pytest.approx(float(total["energy_pj"]), rel=1e-12)
    assert result.ann_energy_pj == pytest.approx(float(total["ann_energy_pj"]), rel=1e-12)
    assert result.seconds == float(epoch["seconds"])
    assert result.energy_budget_pj is result.energy_budget_kept is None
    for step, row in zip(result.per_timestep, rows, strict=True):
        assert {name: float(row[name]) for name in step} == step
    assert find_result(Run(result.folder)) == result


def test_a_teacher_is_trained_first_where_there_is_none(
    distil: Distil, tmp_path: Path, told: Any
) -> None:
    recipe = tmp_path / "teacher.toml"
    recipe.write_text("[training]\nepochs = 1\nbatch_size = 12\n")
    config = make_config(
        {"model.teacher_recipe": str(recipe), "training.epochs": 1, "model.timesteps": 1}
    )
    made = Run(distil(config, Options(tmp_path, progress=told)).folder)
    teacher = only(tmp_path, "teacher")
    assert teacher.status()["state"] == "finished"
    assert teacher.config().training.batch_size == 12
    assert made.environment()["teacher"]["source"] == str(teacher.model_file)
    assert "training one first" in told.said[0]
    again = Run(distil(config, Options(tmp_path, "never")).folder)
    assert again.folder != made.folder
    assert again.environment()["teacher"] == made.environment()["teacher"]
    assert only(tmp_path, "teacher") == teacher


def test_ce_asks_for_no_teacher(distil: Distil, tmp_path: Path) -> None:
    changes = {"method.name": "ce", "training.epochs": 1, "model.teacher": "no such thing"}
    result = distil(make_config(changes), Options(tmp_path))
    assert "teacher" not in Run(result.folder).environment()
    assert (result.teacher, result.teacher_accuracy) == (None, None)
    assert {row["teacher"] for row in read_csv(result.folder / "per_timestep.csv")} == {""}


def test_a_spiking_teacher_is_refused_before_a_run_is_made(distil: Distil, tmp_path: Path) -> None:
    path = tmp_path / "snn.safetensors"
    write_network(path, make_config(), spiking=True)
    with pytest.raises(CheckpointError, match="is a spiking network"):
        distil(make_config({"model.teacher": str(path)}), Options(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_student_does_not_start_with_its_teacher_s_weights() -> None:
    context = make_context(make_config({"method.name": "ce"}))
    student = student_task(context, None).model.state_dict()
    teacher = teacher_task(context).model.state_dict()
    drawn = [key for key, value in student.items() if value.dim() > 1]
    assert student.keys() == teacher.keys()
    assert drawn
    assert not [key for key in drawn if torch.equal(student[key], teacher[key])]


class OfOneStep(nn.Module):
    """A network that takes no notice of the time steps."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.head = nn.Linear(build.height * build.width, build.num_classes)

    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        return self.head(images.flatten(1))


class OfManySteps(OfOneStep):
    """The same at every step; it names no stages."""

    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        return super().forward(images).repeat(timesteps, 1, 1)


@pytest.mark.parametrize(
    ("network", "method", "message"),
    [
        (OfOneStep, "tser", r"network mynet, .* the student \(OfOneStep\) gave \(2, 3\)"),
        (OfManySteps, "feature", "feature compares features of stages, and the student names none"),
    ],
)
def test_a_student_that_can_t_be_trained_is_refused_before_its_teacher_is(
    distil: Distil,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: type[nn.Module],
    method: str,
    message: str,
) -> None:
    monkeypatch.setattr(registry, "MODELS", dict(registry.MODELS))
    monkeypatch.setitem(registry.TABLES, "model", registry.MODELS)
    registry.add_model("mynet")(network)
    changes = {"model.student": "mynet", "method.name": method, "model.timesteps": 4}
    with pytest.raises(ConfigError, match=message):
        distil(make_config(changes), Options(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_another_process_trains_is_waited_for(
    distil: Distil, tmp_path: Path
) -> None:
    config = make_config({"training.epochs": 1})
    theirs = FileLock(tmp_path / ".teacher-digits-resnet20.lock")

    class Waits(Silent):
        """The other process comes to its end as soon as it is waited for."""

        def say(self, text: str) -> None:
            if "another process trains a resnet20 teacher of digits" in text:
                write_teacher()
                theirs.release()

    def write_teacher() -> None:
        run = folder.create(tmp_path, "teacher", config)
        run.update_status(sha256=write_network(run.model_file, config))
        run.update_status(state="finished", model="resnet20", validation_fraction=0.0)

    theirs.acquire(timeout=0)
    result = distil(config, Options(tmp_path, progress=Waits()))
    teacher = only(tmp_path, "teacher")
    assert Run(result.folder).environment()["teacher"]["source"] == str(teacher.model_file)
    assert not (teacher.folder / "metrics.csv").exists()  # it was not trained here
    theirs.acquire(timeout=0)  # the lock is free again
    theirs.release()


def test_while_a_teacher_is_waited_for_the_other_processes_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(make_config())
    theirs, turns = FileLock(tmp_path / ".teacher-digits-resnet20.lock"), list[int]()

    def one_turn(_: Runtime, action: Callable[[], bool]) -> bool:
        turns.append(1)
        if len(turns) == 4:
            theirs.release()
        return action()

    monkeypatch.setattr(Runtime, "on_main", one_turn)
    monkeypatch.setattr(train, "TURN", 0.01)
    theirs.acquire(timeout=0)
    with ExitStack() as held:
        train._hold_training(context, Options(tmp_path), held)
        assert len(turns) == 4
        with pytest.raises(Timeout):
            theirs.acquire(timeout=0)
    theirs.acquire(timeout=0)
    theirs.release()
    assert timedelta(seconds=train.TURN) * 5 < PATIENCE


@pytest.mark.parametrize(
    ("budget", "kept", "profile"), [("100%", True, "loihi"), ("0.48%", False, "")]
)
def test_the_verdict_on_an_energy_budget_and_the_profile_that_prices_it(
    distil: Distil, tmp_path: Path, budget: str, kept: bool, profile: str
) -> None:
    changes = {"method.name": "ce", "energy.budget": budget, "energy.profile": profile}
    result = distil(make_config({"training.epochs": 1, **changes}), Options(tmp_path / "runs"))
    energies = read_csv(result.folder / "energy.csv")
    assert {row["profile"] for row in energies} == {profile or "horowitz-45nm-fp32"}
    assert result.energy_pj is not None and result.ann_energy_pj is not None
    share = float(budget.removesuffix("%")) / 100
    assert result.energy_budget_pj == pytest.approx(share * result.ann_energy_pj)
    assert result.energy_budget_kept is kept
    assert kept is (result.energy_pj <= result.energy_budget_pj)
    made = only(tmp_path / "runs", "student")
    assert find_result(made) == result
    assert f"_{budget.removesuffix('%')}pct_s0_" in made.name
    assert made.status()["state"] == "finished"
    (row,) = read_csv(made.folder / "metrics.csv")
    assert float(row["energy_pj"]) > 0


class Signalled(Silent):
    """Sends this process SIGTERM at a step; keeps what is said."""

    def __init__(self, step: int = 0) -> None:
        self.left = step
        self.said: list[str] = []

    def step(self, images: int, values: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def say(self, text: str) -> None:
        self.said.append(text)


def trained(context: Context, options: Options) -> Run:
    return Run(train_teacher_in(context, options).folder)


def test_a_teacher_s_run_is_complete_and_its_result_is_what_its_files_say(tmp_path: Path) -> None:
    config = make_config({"data.validation_fraction": 0.25})
    result = train_teacher_in(make_context(config), Options(tmp_path))
    made = Run(result.folder)
    status = made.status()
    assert (status["state"], status["epoch"], status["model"]) == ("finished", 2, "resnet20")
    assert (status["dataset"], status["validation_fraction"]) == ("digits", 0.25)
    assert "accuracy" not in status  # there is one place for it
    assert status["result"]["accuracy"] == result.accuracy
    assert status["result"]["teacher_accuracy"] is None
    assert load_model(made.model_file)[2] == status["sha256"]
    assert made.environment()["wall_seconds"] > 0
    assert (made.folder / "figures" / "per_timestep.png").is_file()
    (row,) = read_csv(made.folder / "per_timestep.csv")
    assert tuple(row) == tuple(PER_TIMESTEP)
    assert (row["run"], row["split"], row["method"]) == (made.name, "test", "ce")
    assert (row["teacher"], row["student"], row["images"]) == ("resnet20", "", "11")
    assert find.finished(tmp_path, "teacher")[0] == made
    assert not (made.folder / "energy.csv").exists()
    epochs = read_csv(made.folder / "metrics.csv")
    assert (result.name, result.kind, result.model) == (made.name, "teacher", "resnet20")
    assert (result.dataset, result.method, result.teacher) == ("digits", "ce", None)
    assert (result.timesteps, result.images) == (1, 11)
    assert result.accuracy == float(row["accuracy_cumulative"])
    assert (result.teacher_accuracy, result.energy_pj, result.ann_energy_pj) == (None, None, None)
    held_out = [float(epoch["validation_accuracy"]) for epoch in epochs]
    assert result.best_validation_accuracy == max(held_out)
    assert [score * 6 for score in held_out] == [round(score * 6) for score in held_out]
    assert len(held_out) == 2
    assert result.seconds == pytest.approx(sum(float(epoch["seconds"]) for epoch in epochs))
    (step,) = result.per_timestep
    assert (step["correct_at_t"], step["loss_at_t"]) == (
        int(row["correct_at_t"]),
        float(row["loss_at_t"]),
    )
    assert find_result(made) == result
    assert json.loads(json.dumps(result.to_json())) == made.status()["result"]


def test_an_unknown_architecture_is_refused_before_the_data_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "prepare", lambda *rest: pytest.fail("it was prepared"))
    with pytest.raises(ConfigError, match='did you mean "resnet34"'):
        train.train_teacher(make_config({"model.teacher": "resnet43"}), Options(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    config = make_config({"training.epochs": 1})
    digests = []
    for _ in range(2):
        made = trained(make_context(config), Options(tmp_path, "never"))
        digests.append(made.status()["sha256"])
        torch.rand(3)
    assert digests[0] == digests[1]


def test_a_signal_stops_a_run_and_the_same_command_resumes_it(tmp_path: Path) -> None:
    config = make_config({"training.checkpoint_every": "9min"})
    whole = trained(make_context(config), Options(tmp_path / "whole"))
    with pytest.raises(Interrupted) as stop:
        train_teacher_in(make_context(config, Signalled(2)), Options(tmp_path / "parts"))
    assert stop.value.exit_code == 143
    stopped = only(tmp_path / "parts", "teacher")
    assert (stopped.status()["state"], stopped.status()["resumable"]) == ("stopped", True)
    assert stopped.status()["why"] == "stopped by signal 15"
    assert "result" not in stopped.status()
    assert not stopped.model_file.exists()
    progress = Signalled()
    made = trained(make_context(config, progress), Options(tmp_path / "parts", "must"))
    assert made == stopped
    assert progress.said[0] == f"resuming {made.folder}"
    assert (made.status()["state"], made.status()["why"]) == ("finished", "")
    assert made.status()["sha256"] == whole.status()["sha256"]
    assert [row["epoch"] for row in read_csv(made.folder / "metrics.csv")] == ["1", "2"]


def test_a_signal_during_the_last_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*args, **kwargs)

    build = evaluate.build_eval_loader
    config = make_config({"training.epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "build_eval_loader", signalled)
        with pytest.raises(Interrupted):
            train_teacher_in(make_context(config), Options(tmp_path))
    assert only(tmp_path, "teacher").status()["state"] == "stopped"
    made = trained(make_context(config), Options(tmp_path))
    assert made.status()["state"] == "finished"


def test_a_loss_that_is_not_finite_ends_a_run_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(outputs: Outputs, settings: Any) -> dict[str, torch.Tensor]:
        return {"loss": outputs.logits_TNK.sum() * math.nan}

    monkeypatch.setattr(task.losses, "load_method", lambda name: nan)
    with pytest.raises(NonFiniteError):
        train_teacher_in(make_context(make_config()), Options(tmp_path))
    failed = only(tmp_path, "teacher")
    assert (failed.status()["state"], failed.status()["resumable"]) == ("failed", False)
    assert "loss = nan" in failed.status()["why"]
    assert find.find_unfinished(tmp_path, "teacher", make_config(), False) is None


def test_another_failure_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise RunError("the disk is full")

    config = make_config({"training.epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(state, "save_checkpoint", full)
        with pytest.raises(RunError, match="the disk is full"):
            train_teacher_in(make_context(config), Options(tmp_path))
    failed = only(tmp_path, "teacher")
    assert (failed.status()["state"], failed.status()["resumable"]) == ("failed", True)
    made = trained(make_context(config), Options(tmp_path))
    assert made == failed
    result = find_result(made)
    assert result is not None and result.best_validation_accuracy is None  # none were held out


def test_the_first_error_is_reported_when_the_status_can_t_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(Run, "update_status", full)
        raise RunError("first")

    def full(self: Run, **changes: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(train.training, "train", broken)
    with pytest.raises(RunError, match="first") as error:
        train_teacher_in(make_context(make_config()), Options(tmp_path))
    assert "no space left" in error.value.__notes__[0]


def test_resume_never_begins_a_run_of_its_own(tmp_path: Path) -> None:
    config = make_config({"training.epochs": 1})
    with pytest.raises(Interrupted):
        train_teacher_in(make_context(config, Signalled(1)), Options(tmp_path))
    stopped = only(tmp_path, "teacher")
    made = trained(make_context(config), Options(tmp_path, "never"))
    assert made != stopped
