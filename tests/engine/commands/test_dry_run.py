"""Plans of --dry-run: they tell what would be done, and write nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tser_cli.base.errors import CheckpointError, ConfigError, RunError
from tser_cli.engine.commands.dry_run import plan_student, plan_teacher, step_seconds
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.training import settle
from tser_cli.engine.training.task import Task
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]
MakeContext = Callable[..., Context]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, make_context: MakeContext) -> None:
    """Plans are made for the tiny data set."""
    monkeypatch.setattr(settle, "prepare", make_context)


def test_a_teacher_s_plan(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config({"training.epochs": 7, "data.validation_fraction": 0.25})
    plan = plan_teacher(config, Options(tmp_path / "runs"))
    assert plan.config == config
    # by hand: conv1 9*16; norms 2*(7*16 + 6*32 + 6*64); stages and their two shortcuts; fc 64*3 + 3
    convolutions = 144 + 6 * 2304 + (4608 + 5 * 9216 + 512) + (18432 + 5 * 36864 + 2048)
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)
    assert (plan.network, plan.parameters) == ("resnet20", convolutions + norms + 195)
    assert (plan.train_images, plan.test_images) == (18, 11)
    assert (plan.steps_per_epoch, plan.steps) == (2, 14)
    assert (plan.teacher, plan.device) == (None, "cpu")
    assert plan.step_seconds > 0
    assert plan.seconds == 14 * plan.step_seconds
    assert not (tmp_path / "runs").exists()
    assert capsys.readouterr() == ("", "")  # a plan prints nothing


def test_a_student_s_plan_names_the_teacher_there_is(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    plan = plan_student(make_config({"model.teacher": str(teacher_file)}), Options(tmp_path))
    assert plan.teacher == f"resnet20 from {teacher_file}"
    assert (plan.network, plan.steps) == ("resnet20", 6)


def test_a_student_s_plan_tells_that_a_teacher_comes_first(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    plan = plan_student(make_config(), Options(tmp_path / "runs"))
    assert plan.teacher == "a resnet20 is trained first, 10 epochs"
    plan = plan_student(make_config({"method.name": "ce"}), Options(tmp_path / "runs"))
    assert plan.teacher == "none, ce needs none"
    assert not (tmp_path / "runs").exists()


def test_a_plan_finds_what_would_fail(
    make_config: MakeConfig, make_context: MakeContext, tmp_path: Path
) -> None:
    for plan in (plan_teacher, plan_student):
        with pytest.raises(ConfigError, match="unknown model"):
            plan(make_config({"model.teacher": "resnet43"}), Options(tmp_path))
        with pytest.raises(RunError, match="--resume must: no unfinished"):
            plan(make_config({"method.name": "ce"}), Options(tmp_path, "must"))
    spec, path = make_context(make_config()).dataset.spec, tmp_path / "snn.safetensors"
    model = networks.build("resnet20", spec, make_config(), spiking=True)
    networks.write(path, model, "resnet20", spec, make_config())
    with pytest.raises(CheckpointError, match="is a spiking network"):
        plan_student(make_config({"model.teacher": str(path)}), Options(tmp_path))


def test_measuring_moves_no_weight(
    make_config: MakeConfig, make_context: MakeContext, make_task: Callable[..., Task]
) -> None:
    config = make_config()
    task = make_task("teacher", config)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    assert step_seconds(task, make_context(config)) > 0
    assert all(torch.equal(p, before[name]) for name, p in task.model.named_parameters())
