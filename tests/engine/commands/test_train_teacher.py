"""Training on tiny data: what a run leaves behind when it ends, is stopped, or fails."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tser_cli.base.errors import ConfigError, Interrupted, NonFiniteError, RunError
from tser_cli.base.progress import Silent
from tser_cli.engine.commands import train
from tser_cli.engine.commands.train import train_teacher_in
from tser_cli.engine.evaluation import evaluate
from tser_cli.engine.runs import find
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.runs.record import read_result
from tser_cli.engine.runs.weights import load_model
from tser_cli.engine.training import checkpointing, settle, task
from tser_cli.losses.base import Outputs
from tser_cli.report.csv_files import PER_TIMESTEP, read_csv
from tser_cli.settings.config import Config

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


def trained(context: Context, options: Options) -> Run:
    return Run(train_teacher_in(context, options).folder)


def only(folder: Path, kind: str) -> Run:
    (found,) = find.all_runs(folder, kind)
    return found


def test_a_teacher_s_run_is_complete(
    make_context: MakeContext, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"training.epochs": 1, "data.validation_fraction": 0.25})
    result = train_teacher_in(make_context(config), Options(tmp_path))
    made = Run(result.folder)
    status = made.status()
    assert (status["state"], status["epoch"], status["model"]) == ("finished", 1, "resnet20")
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
    (epoch,) = read_csv(made.folder / "metrics.csv")
    assert float(epoch["validation_accuracy"]) * 6 == round(float(epoch["validation_accuracy"]) * 6)
    assert find.newest_finished(tmp_path, "teacher") == made
    assert not (made.folder / "energy.csv").exists()


def test_a_teacher_s_result_is_what_its_files_say(
    make_context: MakeContext, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"data.validation_fraction": 0.25})
    result = train_teacher_in(make_context(config), Options(tmp_path))
    made = Run(result.folder)
    (row,) = read_csv(made.folder / "per_timestep.csv")
    epochs = read_csv(made.folder / "metrics.csv")
    assert (result.name, result.kind, result.model) == (made.name, "teacher", "resnet20")
    assert (result.dataset, result.method, result.teacher) == ("digits", "ce", None)
    assert (result.timesteps, result.images) == (1, 11)
    assert result.accuracy == float(row["accuracy_cumulative"])
    assert (result.teacher_accuracy, result.energy_pj, result.ann_energy_pj) == (None, None, None)
    held_out = [float(epoch["validation_accuracy"]) for epoch in epochs]
    assert result.best_validation_accuracy == max(held_out)
    assert len(held_out) == 2
    assert result.seconds == pytest.approx(sum(float(epoch["seconds"]) for epoch in epochs))
    (step,) = result.per_timestep
    assert (step["correct_at_t"], step["loss_at_t"]) == (
        int(row["correct_at_t"]),
        float(row["loss_at_t"]),
    )
    assert read_result(made) == result
    assert json.loads(json.dumps(result.to_json())) == made.status()["result"]


def test_without_a_validation_split_there_is_no_best(
    make_context: MakeContext, make_config: MakeConfig, tmp_path: Path
) -> None:
    result = train_teacher_in(make_context(make_config({"training.epochs": 1})), Options(tmp_path))
    assert result.best_validation_accuracy is None


def test_an_unknown_architecture_is_refused_before_the_data_is_loaded(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "prepare", lambda *rest: pytest.fail("it was prepared"))
    with pytest.raises(ConfigError, match='did you mean "resnet34"'):
        train.train_teacher(make_config({"model.teacher": "resnet43"}), Options(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_the_same_seed_gives_the_same_model(
    make_context: MakeContext, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"training.epochs": 1})
    digests = []
    for seed in (0, 0, 1):
        context = make_context(config.updated({"training.seed": seed}))
        made = trained(context, Options(tmp_path, "never"))
        digests.append(made.status()["sha256"])
        torch.rand(3)
    assert digests[0] == digests[1] != digests[2]


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
    whole = trained(make_context(config), Options(tmp_path / "whole"))
    with pytest.raises(Interrupted) as stop:
        train_teacher_in(make_context(config, Signalled(step, number)), Options(tmp_path / "parts"))
    assert stop.value.exit_code == code
    stopped = only(tmp_path / "parts", "teacher")
    assert (stopped.status()["state"], stopped.status()["resumable"]) == ("stopped", True)
    assert stopped.status()["why"] == f"stopped by signal {int(number)}"
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
    make_context: MakeContext,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    assert find.find_unfinished(tmp_path, "teacher", make_config(), False) is None


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
        patch.setattr(checkpointing, "save_checkpoint", full)
        with pytest.raises(RunError, match="the disk is full"):
            train_teacher_in(make_context(config), Options(tmp_path))
    failed = only(tmp_path, "teacher")
    assert (failed.status()["state"], failed.status()["resumable"]) == ("failed", True)
    made = trained(make_context(config), Options(tmp_path))
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

    monkeypatch.setattr(train, "train", broken)
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
    made = trained(make_context(config), Options(tmp_path, "never"))
    assert made != stopped
