"""--dry-run: it tells, and writes nothing."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tser_cli.config import Config
from tser_cli.engine.commands import dry_run
from tser_cli.engine.commands.dry_run import duration, plan_student, plan_teacher, step_seconds
from tser_cli.engine.runs import model_files
from tser_cli.engine.runtime.context import Context, Options
from tser_cli.engine.training.task import Task
from tser_cli.errors import CheckpointError, ConfigError

MakeConfig = Callable[..., Config]
MakeContext = Callable[..., Context]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, make_context: MakeContext) -> None:
    """Plans are made for the tiny data set."""
    monkeypatch.setattr(dry_run, "prepare", make_context)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (37.2, "37 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (4000, "67 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (90000, "25.0 h"),
    ],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def parts(shown: str) -> tuple[Config, dict[str, str]]:
    """The recipe and the lines `name: text` below it."""
    recipe, lines = shown.split("network: ", 1)
    pairs = [line.split(": ", 1) for line in f"network: {lines}".splitlines()]
    return Config.model_validate(tomllib.loads(recipe)), dict(pairs)


def test_a_teacher_s_plan(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config({"training.epochs": 7, "data.validation_fraction": 0.25})
    plan_teacher(config, Options(tmp_path / "runs"))
    recipe, lines = parts(capsys.readouterr().out)
    assert recipe == config
    # by hand: conv1 9*16; norms 2*(7*16 + 6*32 + 6*64); stages and their two shortcuts; fc 64*3 + 3
    convolutions = 144 + 6 * 2304 + (4608 + 5 * 9216 + 512) + (18432 + 5 * 36864 + 2048)
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)
    assert lines["network"] == f"resnet20, {convolutions + norms + 195:,} parameters"
    assert lines["images"] == "18 to train on, 11 to test on"
    assert lines["steps"] == "2 an epoch, 14 in all"
    assert lines["time"].startswith("about ")
    assert lines["time"].endswith(" ms a step, measured)")
    assert not (tmp_path / "runs").exists()


def test_a_student_s_plan_names_the_teacher_there_is(
    make_config: MakeConfig,
    make_context: MakeContext,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec, path = make_context(make_config()).dataset.spec, tmp_path / "teacher.safetensors"
    model = model_files.build("resnet20", spec, make_config(), spiking=False)
    model_files.write(path, model, model_files.describe("resnet20", spec, make_config(), False))
    plan_student(make_config({"model.teacher": str(path)}), Options(tmp_path))
    assert f"teacher: resnet20 from {path}" in capsys.readouterr().out


def test_a_student_s_plan_tells_that_a_teacher_comes_first(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_student(make_config(), Options(tmp_path / "runs"))
    assert "teacher: a resnet20 is trained first, 10 epochs" in capsys.readouterr().out
    plan_student(make_config({"method.name": "ce"}), Options(tmp_path / "runs"))
    assert "teacher: none, ce needs none" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_plan_finds_what_would_fail(
    make_config: MakeConfig, make_context: MakeContext, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="unknown model"):
        plan_teacher(make_config({"model.teacher": "resnet43"}), Options(tmp_path))
    with pytest.raises(ConfigError, match="unknown model"):
        plan_student(make_config({"model.teacher": "resnet43"}), Options(tmp_path))
    spec, path = make_context(make_config()).dataset.spec, tmp_path / "snn.safetensors"
    model = model_files.build("resnet20", spec, make_config(), spiking=True)
    model_files.write(path, model, model_files.describe("resnet20", spec, make_config(), True))
    with pytest.raises(CheckpointError, match="is a spiking network"):
        plan_student(make_config({"model.teacher": str(path)}), Options(tmp_path))


def test_measuring_moves_no_weight(
    make_config: MakeConfig, make_context: MakeContext, make_task: Callable[..., Task]
) -> None:
    config = make_config()
    task = make_task("teacher", config)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    copied = copy.deepcopy(before)
    assert step_seconds(task, make_context(config)) > 0
    assert all(torch.equal(p, copied[name]) for name, p in task.model.named_parameters())
