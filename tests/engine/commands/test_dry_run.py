"""Plans of --dry-run: they tell what would be done, and write nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.results import RESULT
from tser_cli.base.errors import CheckpointError, ConfigError, RunError
from tser_cli.engine.ablation.folder import AblationFolder, cell_folder, checked_plan, write_plan
from tser_cli.engine.ablation.grid import Request
from tser_cli.engine.commands import dry_run
from tser_cli.engine.commands.dry_run import (
    AblationPlan,
    TrainingPlan,
    makespan,
    plan_ablation,
    plan_student,
    plan_teacher,
    step_seconds,
)
from tser_cli.engine.runs import folder, networks
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.training import settle
from tser_cli.engine.training.task import Task
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]
MakeContext = Callable[..., Context]
Ask = Callable[..., Request]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, make_context: MakeContext) -> None:
    """Plans are made for the tiny data set."""
    monkeypatch.setattr(settle, "prepare", make_context)


def planned(request: Request, place: AblationFolder) -> AblationPlan:
    return plan_ablation(request, place, Options(place.runs_dir))


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
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")  # a plan prints nothing


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
    with pytest.raises(ConfigError, match="unknown model"):
        plan_teacher(make_config({"model.teacher": "resnet43"}), Options(tmp_path))
    with pytest.raises(ConfigError, match="unknown model"):
        plan_student(make_config({"model.teacher": "resnet43"}), Options(tmp_path))
    spec, path = make_context(make_config()).dataset.spec, tmp_path / "snn.safetensors"
    model = networks.build("resnet20", spec, make_config(), spiking=True)
    networks.write(path, model, networks.describe("resnet20", spec, make_config(), True))
    with pytest.raises(CheckpointError, match="is a spiking network"):
        plan_student(make_config({"model.teacher": str(path)}), Options(tmp_path))


def test_a_plan_finds_that_there_is_nothing_to_resume(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    for plan in (plan_teacher, plan_student):
        with pytest.raises(RunError, match="--resume must: no unfinished"):
            plan(make_config({"method.name": "ce"}), Options(tmp_path, "must"))


def test_measuring_moves_no_weight(
    make_config: MakeConfig, make_context: MakeContext, make_task: Callable[..., Task]
) -> None:
    config = make_config()
    task = make_task("teacher", config)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    copied = copy.deepcopy(before)
    assert step_seconds(task, make_context(config)) > 0
    assert all(torch.equal(p, copied[name]) for name, p in task.model.named_parameters())


def test_an_ablation_s_plan_tells_and_writes_nothing(
    ask: Ask, place: AblationFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = planned(ask(["method=ce,kd"], 2, {"model.teacher": "resnet20"}), place)
    titles = ("method=ce, seed 0", "method=kd, seed 0", "method=ce, seed 1", "method=kd, seed 1")
    assert plan.cells == tuple((title, False) for title in titles)
    assert plan.teachers == ("a resnet20 is trained first, 10 epochs",)
    assert plan.seconds > 0
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_the_plan_of_a_begun_ablation(ask: Ask, place: AblationFolder) -> None:
    begun = ask(["method=ce,kd"])
    write_plan(place, checked_plan(begun, place))
    for cell in begun.cells:
        made = folder.create(cell_folder(cell, place.folder), "student", cell.config)
        made.update_status(state="finished", result=RESULT)
    before = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")}
    plan = planned(ask(["method=ce,kd"], 2), place)
    assert plan.cells == (
        *(("method=ce, seed 0", True), ("method=kd, seed 0", True)),
        *(("method=ce, seed 1", False), ("method=kd, seed 1", False)),
    )
    assert plan.teachers == ()
    assert {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")} == before
    finished = planned(begun, place)
    assert (finished.seconds, finished.jobs) == (0.0, 1)


@pytest.fixture
def a_plan(ask: Ask, tmp_path: Path) -> TrainingPlan:
    """The plan of a student; its step takes 100 s."""
    config = ask(["method=ce"]).cells[0].config
    return replace(plan_student(config, Options(tmp_path)), step_seconds=100.0, steps=1)


def test_the_estimate_counts_each_cell(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch, a_plan: TrainingPlan
) -> None:
    asked: list[tuple[str, int]] = []

    def plan(config: Config, options: Options) -> TrainingPlan:
        asked.append((config.method.name, config.training.epochs))
        return replace(a_plan, steps=config.training.epochs)

    monkeypatch.setattr(dry_run, "plan_student", plan)
    found = planned(ask(["method=ce,kd", "epochs=1,2", "ce_weight=1,2"], 2), place)
    assert sorted(asked) == [("ce", 1), ("ce", 2), ("kd", 1), ("kd", 2)]
    assert len(found.cells) == 16
    assert not any(finished for _, finished in found.cells)
    assert found.seconds == 8 * 100 + 8 * 200


def test_the_estimate_counts_the_cells_side_by_side(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch, a_plan: TrainingPlan
) -> None:
    threads: list[int] = []

    def plan(config: Config, options: Options) -> TrainingPlan:
        threads.append(torch.get_num_threads())
        return replace(a_plan, step_seconds=600.0)

    monkeypatch.setattr(dry_run, "plan_student", plan)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = torch.get_num_threads()
    request = ask(["method=ce,kd,ts"])
    told: list[Any] = []
    for jobs, address in ((None, None), (2, None), (2, "auto"), (None, "auto")):
        found = planned(request, AblationFolder(place.folder, place.runs_dir, jobs, address))
        told.append((found.seconds, found.jobs, found.jobs_given, found.address))
    assert told == [
        (1800.0, 1, False, None),
        (1200.0, 2, True, None),
        (1200.0, 2, True, "auto"),
        (1800.0, 1, False, "auto"),
    ]
    assert set(threads) == {3}
    assert torch.get_num_threads() == before


def test_the_teacher_s_training_comes_before_the_cells(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch, a_plan: TrainingPlan
) -> None:
    asked: list[str] = []

    def plan(config: Config, options: Options) -> TrainingPlan:
        asked.append(config.model.teacher)
        return replace(a_plan, config=config, network=config.model.teacher, steps=50)

    monkeypatch.setattr(dry_run, "plan_student", lambda config, options: a_plan)
    monkeypatch.setattr(dry_run, "plan_teacher", plan)
    changes = {"model.teacher": "resnet20"}
    place = AblationFolder(place.folder, place.runs_dir, jobs=2)
    found = planned(ask(["method=ce,kd"], 2, changes), place)
    assert asked == ["resnet20"]
    assert found.seconds == 50 * 100 + 2 * 100
    assert planned(ask(["method=ce"], 2, changes), place).seconds == 100


@pytest.mark.parametrize(
    ("durations", "jobs", "end"),
    [([], 1, 0), ([1, 2, 3], 1, 6), ([1, 2, 3], 2, 4), ([3, 2, 1], 2, 3), ([1, 2], 9, 2)],
)
def test_when_the_last_of_several_is_done(durations: list[float], jobs: int, end: float) -> None:
    assert makespan(durations, jobs) == end
