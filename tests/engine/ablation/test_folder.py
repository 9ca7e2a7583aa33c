"""The folder of an ablation: its plan, its lock, and its cells' folders."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.engine.ablation.conftest import make_cell
from tests.engine.conftest import make_config
from tests.engine.results import RESULT
from tser_cli.base.errors import ConfigError, RunError
from tser_cli.engine.ablation import folder as ablation_folder
from tser_cli.engine.ablation.folder import (
    SETTINGS,
    AblationFolder,
    CellRun,
    PlannedTeacher,
    RecordedPlan,
    cell_folder,
    cell_name,
    checked_plan,
    find_cell,
    has_teacher,
    hold,
    read_cell,
    read_plan,
    shared_teacher,
    teacher_key,
    write_plan,
    write_settings,
)
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.runs import record
from tser_cli.engine.runs.find import find_unfinished
from tser_cli.engine.runs.folder import Run, create
from tser_cli.settings.config import Config
from tser_cli.settings.recipe import read, resolve

Ask = Callable[..., Request]


@pytest.fixture
def begun(ask: Ask, place: AblationFolder) -> AblationFolder:
    """A folder with the plan of an ablation."""
    write_plan(place, checked_plan(ask(["method=ce,kd"]), place))
    return place


def test_a_plan_is_read_as_it_was_written(ask: Ask, begun: AblationFolder) -> None:
    plan = read_plan(begun)
    none = AblationFolder(begun.folder / "none", begun.runs_dir)
    assert read_plan(none) == RecordedPlan()
    cells = ask(["method=ce,kd"]).cells
    assert (plan.axes, plan.teachers) == (["method.name"], {})
    free = ("training.device", "data.dir", "data.workers", "training.seed")  # change no result
    for cell in cells:
        stated = cell.config.result_settings()
        assert plan.cells[cell.label] == {k: v for k, v in stated.items() if k not in free}
    assert checked_plan(ask(["method=ce,kd"]), begun) == plan


@pytest.mark.parametrize(
    "content",
    [
        *("[" * 200_000, "[]", "\0", '{"axes": {}}', '{"axes": [1]}', '{"cells": {"a": 1}}'),
        *('{"teachers": {"a": {}}}', '{"cells": {"a": Infinity}}', '{"axes": ["\\ud800"]}', "{"),
    ],
    ids=range(10),
)
def test_a_damaged_plan_is_named(ask: Ask, begun: AblationFolder, content: str) -> None:
    begun.plan.write_text(content)
    with pytest.raises(ConfigError, match=f"{begun.plan}, is damaged"):
        read_plan(begun)
    with pytest.raises(ConfigError, match=f"{begun.plan}, is damaged"):
        checked_plan(ask(["method=ce"]), begun)


@pytest.mark.parametrize(
    ("jobs", "cells", "kept"), [(None, 3, None), (2, 3, 2), (10**9, 3, 3), (4, 0, 1)]
)
def test_there_are_no_more_jobs_than_cells(
    place: AblationFolder, jobs: int | None, cells: int, kept: int | None
) -> None:
    asked = AblationFolder(place.folder, place.runs_dir, jobs)
    assert asked.with_jobs_for(cells).jobs == kept


@pytest.mark.parametrize(
    ("vary", "changes", "said"),
    [
        (["T=1,2"], {}, "it varies method.name"),
        (["method=ce"], {"optimizer.lr": 0.5}, r"optimizer\.lr: 0\.1 -> 0\.5"),
        (["method=kd"], {"method.kd_weight": 2.0}, r"method\.kd_weight: 1\.0 -> 2\.0"),
        (["method=kd"], {"training.epochs": 2}, r"training\.epochs: 1 -> 2"),
    ],
)
def test_the_folder_of_another_ablation(
    ask: Ask, begun: AblationFolder, vary: list[str], changes: dict[str, Any], said: str
) -> None:
    before = begun.plan.read_bytes()
    with pytest.raises(ConfigError, match=said) as error:
        checked_plan(ask(vary, 1, changes), begun)
    assert "choose another --output" in str(error.value).lower()
    assert begun.plan.read_bytes() == before


def test_a_setting_newer_than_the_plan_was_at_its_default(ask: Ask, begun: AblationFolder) -> None:
    plan = read_plan(begun)
    for settings in plan.cells.values():
        del settings["energy.budget"], settings["method.rate_weight"]
    write_plan(begun, plan)
    assert checked_plan(ask(["method=ce,kd"]), begun).cells == plan.cells
    with pytest.raises(ConfigError, match=r"energy\.budget: 'none' -> '4uJ'"):
        checked_plan(ask(["method=ce,kd"], 1, {"energy.budget": "4uJ"}), begun)


def test_more_values_and_seeds_join_a_plan(ask: Ask, begun: AblationFolder) -> None:
    plan = checked_plan(ask(["method=ce,ts"], 3, {"training.device": "auto"}), begun)
    assert list(plan.cells) == ["method=ce", "method=kd", "method=ts"]


def test_a_folder_is_held_by_one_at_a_time(place: AblationFolder) -> None:
    with hold(place), pytest.raises(RunError, match="in use by another tser ablate"), hold(place):
        raise AssertionError
    with hold(place):
        assert place.folder.is_dir()


def test_the_teacher_that_the_ablation_began_with(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    plan = RecordedPlan(teachers={"key": PlannedTeacher(file=str(file), sha256=digest)})
    assert shared_teacher(plan, "another") is None
    assert shared_teacher(plan, "key") == str(file)
    file.write_bytes(b"others")
    with pytest.raises(ConfigError, match=r"teacher\.safetensors, the teacher .* has changed"):
        shared_teacher(plan, "key")
    file.unlink()
    with pytest.raises(ConfigError, match="is gone or has changed"):
        shared_teacher(plan, "key")


def test_cells_share_a_teacher_by_data_architecture_and_split() -> None:
    key = teacher_key(make_config())
    assert teacher_key(make_config({"method.name": "kd", "training.seed": 1})) == key
    others = [
        make_config({"model.teacher": "resnet18"}),
        make_config({"data.validation_fraction": 0.25}),
        *(
            make_config({"data.name": "cifar10-dvs", "data.split": of})
            for of in ("first", "random")
        ),
    ]
    assert len({key, *map(teacher_key, others)}) == 5


def test_where_a_teacher_is_found(place: AblationFolder, teacher_file: Path) -> None:
    config = make_config()
    assert has_teacher(make_config({"model.teacher": str(teacher_file)}), place)
    assert not has_teacher(config, place)
    run = create(place.runs_dir, "teacher", config)
    run.update_status(state="finished", model="resnet20", validation_fraction=0.0)
    assert has_teacher(config, place)


@pytest.mark.parametrize(
    ("varied", "name"),
    [
        ({"method.name": "kd"}, "method=kd_s3"),
        ({"method.name": "kd", "model.timesteps": 2}, "method=kd_timesteps=2_s3"),
        ({"method.entropy_weight": 1e-05}, "entropy_weight=1e-05_s3"),
        ({"optimizer.weight_decay": 0.5}, "weight_decay=0.5_s3"),
        ({"method.entropy_weight": -0.1}, "entropy_weight=-0.1_s3"),
        ({"optimizer.lr": 1e30}, "lr=1e+30_s3"),
        ({"training.deterministic": True}, "deterministic=True_s3"),
        ({"model.teacher": "runs/a b"}, "teacher=runs-a-b_s3-0f733132"),
    ],
)
def test_folders_are_named_by_what_is_varied(varied: dict[str, Any], name: str) -> None:
    cell = make_cell(varied, 3)
    assert cell_name(cell) == name
    assert cell_folder(cell, Path("x")) == Path("x/cells") / name


def test_no_two_cells_share_a_folder() -> None:
    values = ["a/b", "a-b", "a b", "../a", "x" * 300, "x" * 301, "é" * 300, "[a]", "a\nb"]
    names = [cell_name(make_cell({"model.teacher": value})) for value in values]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and len(name.encode()) < 255 for name in names)


def test_a_cell_that_is_not_finished_says_so(tmp_path: Path) -> None:
    cell = make_cell({"method.name": "kd"}, 2)
    assert read_cell(cell, tmp_path) == CellRun("missing")
    for state in ("running", "failed", "stopped"):
        create(cell_folder(cell, tmp_path), "student", cell.config).update_status(state=state)
        assert find_cell(cell, tmp_path) is None
        assert read_cell(cell, tmp_path).state == state


def finished(cell: Cell, folder: Path, **status: Any) -> Run:
    run = create(cell_folder(cell, folder), "student", cell.config)
    now = datetime.now().astimezone().isoformat()
    run.update_status(**{"state": "finished", "finished": now, "result": RESULT, **status})
    return run


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": None},
        {"accuracy": 17.0},
        {"accuracy": "high"},
        {"per_timestep": []},
        {"per_timestep": [{"t": 7, "accuracy_at_t": 0.5, "accuracy_cumulative": 0.5}]},
        {"per_timestep": [{"t": 1, "accuracy_cumulative": 0.5}]},
        {"per_timestep": [{"t": 1, "accuracy_at_t": "x", "accuracy_cumulative": 0.5}]},
    ],
)
def test_a_cell_with_a_damaged_result_is_named_and_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    cell = make_cell({"method.name": "kd"}, 2)
    sound = finished(cell, tmp_path)
    assert find_cell(cell, tmp_path) == sound
    record = read_cell(cell, tmp_path).record
    assert record is not None and record.accuracy == 0.5
    sound.update_status(result={**RESULT, **change})
    assert find_cell(cell, tmp_path) is None
    assert "method=kd, seed 2 counts as not trained" in caplog.text
    assert read_cell(cell, tmp_path).state == "damaged"


def test_a_cell_with_a_damaged_file_is_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cell = make_cell({"method.name": "kd"})
    run = finished(cell, tmp_path)
    for name in ("environment.json", "status.json"):
        (run.folder / name).write_text('{"accuracy": NaN}')
        assert find_cell(cell, tmp_path) is None
        assert str(run.folder / name) in caplog.text


def test_a_cell_is_read_again_once_its_status_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, read = make_cell({"method.name": "kd"}), list[str]()
    sound = finished(cell, tmp_path)
    before = record.read_record
    monkeypatch.setattr(
        ablation_folder, "read_record", lambda run: (read.append(run.name), before(run))[1]
    )
    first = read_cell(cell, tmp_path)
    assert read_cell(cell, tmp_path) is first and read == [sound.name]
    sound.update_status(result={**RESULT, "accuracy": 0.25})
    again = read_cell(cell, tmp_path).record
    assert again is not None and again.accuracy == 0.25
    newer = finished(cell, tmp_path, result={**RESULT, "accuracy": 0.75})
    assert find_cell(cell, tmp_path) == newer


@pytest.mark.parametrize("content", [None, b"PK"])
def test_predictions_that_are_missing_or_damaged_cost_no_more_than_themselves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    cell = make_cell({"method.name": "kd"})
    run = finished(cell, tmp_path)
    if content is not None:
        (run.folder / "predictions.npz").write_bytes(content)
    found = read_cell(cell, tmp_path)
    assert (found.state, found.right) == ("finished", None)
    assert ("predictions.npz is damaged" in caplog.text) is (content is not None)


def test_a_cell_s_paths_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cell = make_cell({"method.name": "kd"}, **{"data.dir": "images"})
    home = write_settings(cell, Path("out"))
    assert home == tmp_path / "out" / "cells" / "method=kd_s0"
    stated = tomllib.loads((home / "cell.toml").read_text())
    assert stated["data"]["dir"] == str(tmp_path / "images")


def test_a_cell_goes_on_where_the_images_have_moved(tmp_path: Path) -> None:
    def settings_at(folder: str) -> tuple[Path, Config]:
        home = write_settings(
            make_cell({"method.name": "kd"}, **{"data.dir": str(tmp_path / folder)}), tmp_path
        )
        return home, resolve([read(str(home / SETTINGS))])

    home, before = settings_at("images")
    run = create(home, "student", before)
    run.update_status(state="stopped")
    _, moved = settings_at("moved")
    assert moved.data.dir == str(tmp_path / "moved")
    assert find_unfinished(home, "student", moved, must=False) == run


def test_settings_are_those_that_differ_and_are_not_varied() -> None:
    config = Config().updated({"optimizer.lr": 0.3, "model.timesteps": 4, "training.seed": 7})
    words = Cell({"model.timesteps": 4}, 7, config).in_words
    assert words["settings"] == "optimizer.lr=0.3"
    assert words["temperature"] == 2.0
    assert "entropy_weight=0.05" in words["weights"].split("; ")
    assert "temperature" not in words["weights"]
    assert Cell({}, 0, Config()).in_words["settings"] == ""
