"""The verbs on tiny data: what a run leaves behind when it ends, is stopped, or fails."""

from __future__ import annotations

import errno
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tser_cli.config import Config
from tser_cli.engine.commands import distill
from tser_cli.engine.commands.distill import train_teacher_in
from tser_cli.engine.runs import model_files, run_folder
from tser_cli.engine.runs.checkpoints import load_model
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime import context
from tser_cli.engine.runtime.context import Context, Options
from tser_cli.engine.training import loop, task
from tser_cli.errors import CheckpointError, Interrupted, NonFiniteError, RunError
from tser_cli.losses.base import Outputs
from tser_cli.report.csv_files import PER_TIMESTEP, read_csv
from tser_cli.report.progress import Silent

MakeConfig = Callable[..., Config]
MakeContext = Callable[..., Context]


class Signalled(Silent):
    """Sends this process a signal at a step; keeps what is said."""

    def __init__(self, step: int = 0, number: int = signal.SIGTERM) -> None:
        self.left, self.number = step, number
        self.said: list[str] = []

    def step(self, images: int, values: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def teacher_file(tmp_path: Path, make_config: MakeConfig, make_context: MakeContext) -> Path:
    """A model file of an untrained teacher."""
    spec, path = make_context(make_config()).dataset.spec, tmp_path / "teacher.safetensors"
    model = model_files.build("resnet20", spec, make_config(), spiking=False)
    model_files.write(path, model, model_files.describe("resnet20", spec, make_config(), False))
    return path


@pytest.fixture
def distil(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """`distil(config, options, progress)`: the verb on the tiny data."""

    def verb(config: Config, options: Options, progress: Silent | None = None) -> Run:
        monkeypatch.setattr(distill, "prepare", lambda config: make_context(config, progress))
        return distill.distill(config, options)

    return verb


def only(folder: Path, kind: str) -> Run:
    (found,) = run_folder.all_runs(folder, kind)
    return found


def test_a_teacher_s_run_is_complete(
    make_context: MakeContext, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"training.epochs": 1, "data.validation_fraction": 0.25})
    made, evaluation = train_teacher_in(make_context(config), Options(tmp_path))
    status = made.status()
    assert (status["state"], status["epoch"], status["model"]) == ("finished", 1, "resnet20")
    assert (status["dataset"], status["validation_fraction"]) == ("digits", 0.25)
    assert status["accuracy"] == evaluation.accuracy
    assert status["teacher_accuracy"] is None
    assert load_model(made.model_file)[2] == status["sha256"]
    assert made.environment()["wall_seconds"] > 0
    assert (made.folder / "figures" / "per_timestep.png").is_file()
    (row,) = read_csv(made.folder / "per_timestep.csv")
    assert tuple(row) == PER_TIMESTEP
    assert (row["run"], row["split"], row["method"]) == (made.name, "test", "ce")
    assert (row["teacher"], row["student"], row["images"]) == ("resnet20", "", "11")
    (epoch,) = read_csv(made.folder / "metrics.csv")
    assert float(epoch["validation_accuracy"]) * 6 == round(float(epoch["validation_accuracy"]) * 6)
    assert run_folder.newest_finished(tmp_path, "teacher") == made


def test_the_same_seed_gives_the_same_model(
    make_context: MakeContext, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"training.epochs": 1})
    digests = []
    for seed in (0, 0, 1):
        context = make_context(config.updated({"training.seed": seed}))
        made, _ = train_teacher_in(context, Options(tmp_path, "never"))
        digests.append(made.status()["sha256"])
        torch.rand(3)
    assert digests[0] == digests[1] != digests[2]


def test_a_student_is_distilled_from_a_file(
    distil: Callable[..., Run],
    make_config: MakeConfig,
    teacher_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config({"model.teacher": str(teacher_file), "training.epochs": 1})
    made = distil(config, Options(tmp_path / "runs"))
    recorded = made.environment()["teacher"]
    _, _, digest = load_model(teacher_file)
    assert recorded == {"source": str(teacher_file), "model": "resnet20", "sha256": digest}
    rows = read_csv(made.folder / "per_timestep.csv")
    assert [(row["t"], row["teacher"], row["student"]) for row in rows] == [
        ("1", "resnet20", "resnet20"),
        ("2", "resnet20", "resnet20"),
    ]
    assert float(rows[0]["teacher_accuracy"]) == made.status()["teacher_accuracy"]
    shown = capsys.readouterr().out
    assert str(made.folder) in shown
    assert "tser evaluate --per-timestep" in shown


def test_a_teacher_is_trained_first_where_there_is_none(
    distil: Callable[..., Run], make_config: MakeConfig, tmp_path: Path
) -> None:
    recipe = tmp_path / "teacher.toml"
    recipe.write_text("[training]\nepochs = 1\nbatch_size = 12\n")
    config = make_config(
        {"model.teacher_recipe": str(recipe), "training.epochs": 1, "model.timesteps": 1}
    )
    progress = Signalled()
    made = distil(config, Options(tmp_path), progress)
    teacher = only(tmp_path, "teacher")
    assert teacher.status()["state"] == "finished"
    assert teacher.config().training.batch_size == 12
    assert made.environment()["teacher"]["source"] == str(teacher.model_file)
    assert "training one first" in progress.said[0]
    again = distil(config, Options(tmp_path, "never"))
    assert again.folder != made.folder
    assert again.environment()["teacher"] == made.environment()["teacher"]
    assert only(tmp_path, "teacher") == teacher


def test_ce_asks_for_no_teacher(
    distil: Callable[..., Run], make_config: MakeConfig, tmp_path: Path
) -> None:
    changes = {"method.name": "ce", "training.epochs": 1, "model.teacher": "no such thing"}
    made = distil(make_config(changes), Options(tmp_path))
    assert "teacher" not in made.environment()
    assert {row["teacher"] for row in read_csv(made.folder / "per_timestep.csv")} == {""}


def test_a_spiking_teacher_is_refused_before_a_run_is_made(
    distil: Callable[..., Run],
    make_config: MakeConfig,
    make_context: MakeContext,
    tmp_path: Path,
) -> None:
    spec, path = make_context(make_config()).dataset.spec, tmp_path / "snn.safetensors"
    model = model_files.build("resnet20", spec, make_config(), spiking=True)
    model_files.write(path, model, model_files.describe("resnet20", spec, make_config(), True))
    with pytest.raises(CheckpointError, match="is a spiking network"):
        distil(make_config({"model.teacher": str(path)}), Options(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("number", "code", "step"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 3)]
)
def test_a_signal_stops_a_run_and_the_same_command_goes_on(
    make_context: MakeContext,
    make_config: MakeConfig,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    step: int,
) -> None:
    config = make_config({"training.checkpoint_every": "9min"})
    whole, _ = train_teacher_in(make_context(config), Options(tmp_path / "whole"))
    with pytest.raises(Interrupted) as stop:
        train_teacher_in(make_context(config, Signalled(step, number)), Options(tmp_path / "parts"))
    assert stop.value.exit_code == code
    stopped = only(tmp_path / "parts", "teacher")
    assert (stopped.status()["state"], stopped.status()["resumable"]) == ("stopped", True)
    assert stopped.status()["why"] == f"stopped by signal {int(number)}"
    assert not stopped.model_file.exists()
    progress = Signalled()
    made, _ = train_teacher_in(make_context(config, progress), Options(tmp_path / "parts", "must"))
    assert made == stopped
    assert progress.said[0] == f"going on with {made.folder}"
    assert (made.status()["state"], made.status()["why"]) == ("finished", "")
    assert made.status()["sha256"] == whole.status()["sha256"]
    assert [row["epoch"] for row in read_csv(made.folder / "metrics.csv")] == ["1", "2"]


def test_a_signal_during_the_last_evaluation(
    make_context: MakeContext,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*args, **kwargs)

    build = context.build_eval_loader
    config = make_config({"training.epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(context, "build_eval_loader", signalled)
        with pytest.raises(Interrupted):
            train_teacher_in(make_context(config), Options(tmp_path))
    assert only(tmp_path, "teacher").status()["state"] == "stopped"
    made, _ = train_teacher_in(make_context(config), Options(tmp_path))
    assert made.status()["state"] == "finished"


def test_a_loss_that_is_not_finite_ends_a_run_for_good(
    make_context: MakeContext,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nan(outputs: Outputs, settings: Any) -> dict[str, torch.Tensor]:
        return {"loss": outputs.logits_TNK.sum() * math.nan}

    monkeypatch.setattr(task, "load_method", lambda name: nan)
    with pytest.raises(NonFiniteError):
        train_teacher_in(make_context(make_config()), Options(tmp_path))
    failed = only(tmp_path, "teacher")
    assert (failed.status()["state"], failed.status()["resumable"]) == ("failed", False)
    assert "loss = nan" in failed.status()["why"]
    assert run_folder.find_unfinished(tmp_path, "teacher", make_config(), False) is None


def test_another_failure_can_be_taken_up_again(
    make_context: MakeContext,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any) -> None:
        raise RunError("the disk is full")

    config = make_config({"training.epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", full)
        with pytest.raises(RunError, match="the disk is full"):
            train_teacher_in(make_context(config), Options(tmp_path))
    failed = only(tmp_path, "teacher")
    assert (failed.status()["state"], failed.status()["resumable"]) == ("failed", True)
    made, _ = train_teacher_in(make_context(config), Options(tmp_path))
    assert made == failed


def test_the_first_error_is_told_when_the_status_can_t_be_written(
    make_context: MakeContext,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(Run, "update_status", full)
        raise RunError("first")

    def full(self: Run, **changes: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(distill, "train", broken)
    with pytest.raises(RunError, match="first") as error:
        train_teacher_in(make_context(make_config()), Options(tmp_path))
    assert "no space left" in error.value.__notes__[0]


def test_resume_never_begins_a_run_of_its_own(
    make_context: MakeContext, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"training.epochs": 1})
    with pytest.raises(Interrupted):
        train_teacher_in(make_context(config, Signalled(1)), Options(tmp_path))
    stopped = only(tmp_path, "teacher")
    made, _ = train_teacher_in(make_context(config), Options(tmp_path, "never"))
    assert made != stopped
