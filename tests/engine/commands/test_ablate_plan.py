"""What an ablation would do: it tells and writes nothing; and the one precision of all cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import make_context
from tests.engine.results import RESULT
from tser_cli.base.progress import Silent
from tser_cli.engine.ablation.folder import AblationFolder, cell_folder, checked_plan, write_plan
from tser_cli.engine.ablation.grid import Request
from tser_cli.engine.commands import ablate, dry_run
from tser_cli.engine.commands.ablate import AblationPlan, plan_ablation
from tser_cli.engine.commands.dry_run import TrainingPlan, plan_student
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.opened import Options
from tser_cli.engine.training import settle
from tser_cli.settings.config import Config

Ask = Callable[..., Request]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are made for the tiny data set."""
    monkeypatch.setattr(settle, "prepare", make_context)


def planned(request: Request, place: AblationFolder) -> AblationPlan:
    return plan_ablation(request, place, Options(place.runs_dir))


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
    assert capsys.readouterr() == ("", "")


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


def test_one_precision_is_chosen_for_all_cells_and_kept(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, asked = ask(["method=ce,kd"], 2, {"training.precision": "auto"}), list[str]()

    def found(precision: str) -> set[str]:
        monkeypatch.setattr(ablate, "prepare", lambda config, progress: config)
        monkeypatch.setattr(
            ablate, "choose_precision", lambda kind, context: asked.append(kind) or precision
        )
        settled = ablate.with_one_precision(request, place, Silent())
        write_plan(place, checked_plan(settled, place))
        return {cell.config.training.precision for cell in settled.cells}

    assert found("bf16") == {"bf16"}
    assert asked == ["student"]
    assert found("fp32") == {"bf16"}  # the plan's


def test_a_precision_that_is_varied_stands(ask: Ask, place: AblationFolder) -> None:
    request = ask(["precision=fp32,bf16"])
    assert ablate.with_one_precision(request, place, Silent()) is request
