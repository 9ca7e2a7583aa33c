"""The folder of an ablation: its plan, its lock, and where its teachers are found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.engine.ablation.folder import (
    AblationFolder,
    checked_plan,
    find_folder,
    hold,
    read_plan,
    settings_of,
    shared_teacher,
    teacher_key,
    write_plan,
)
from tser_cli.engine.ablation.grid import Request
from tser_cli.engine.runs import folder
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]
Ask = Callable[..., Request]


@pytest.fixture
def begun(ask: Ask, place: AblationFolder) -> AblationFolder:
    """A folder with the plan of an ablation."""
    write_plan(place, checked_plan(ask(["method=ce,kd"]), place))
    return place


def test_a_plan_is_read_as_it_was_written(ask: Ask, begun: AblationFolder) -> None:
    document = read_plan(begun)
    assert document["axes"] == ["method.name"]
    cells = ask(["method=ce,kd"]).cells
    assert document["cells"] == {cell.label: settings_of(cell) for cell in cells}
    assert document["teachers"] == {}
    assert checked_plan(ask(["method=ce,kd"]), begun) == document


@pytest.mark.parametrize(
    "content",
    [
        *("[" * 200_000, "[]", "\0", '{"axes": {}}', '{"axes": [1]}', '{"cells": {"a": 1}}'),
        *('{"teachers": {"a": {}}}', '{"cells": {"a": Infinity}}', '{"axes": ["\\ud800"]}'),
    ],
    ids=range(9),
)
def test_a_damaged_plan_is_named(begun: AblationFolder, content: str) -> None:
    begun.plan.write_text(content)
    with pytest.raises(ConfigError, match=f"{begun.plan}, is damaged"):
        read_plan(begun)


@pytest.mark.parametrize(
    ("jobs", "cells", "kept"), [(None, 3, None), (2, 3, 2), (10**9, 3, 3), (4, 0, 1)]
)
def test_there_are_no_more_jobs_than_cells(
    place: AblationFolder, jobs: int | None, cells: int, kept: int | None
) -> None:
    asked = AblationFolder(place.folder, place.runs_dir, jobs)
    assert asked.with_jobs_for(cells).jobs == kept


def test_where_there_is_no_plan_it_is_empty(place: AblationFolder) -> None:
    assert read_plan(place) == {"axes": [], "cells": {}, "teachers": {}}
    assert not place.folder.exists()


def test_what_changes_no_result_is_in_no_plan(ask: Ask) -> None:
    (cell,) = ask(["method=ce"]).cells
    stated = settings_of(cell)
    assert stated["training.epochs"] == 1
    free = ("training.device", "data.dir", "data.workers", "training.seed")
    assert not set(free) & stated.keys()


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
    document = read_plan(begun)
    for settings in document["cells"].values():
        del settings["energy.budget"], settings["method.rate_weight"]
    write_plan(begun, document)
    assert checked_plan(ask(["method=ce,kd"]), begun)["cells"] == document["cells"]
    with pytest.raises(ConfigError, match=r"energy\.budget: 'none' -> '4uJ'"):
        checked_plan(ask(["method=ce,kd"], 1, {"energy.budget": "4uJ"}), begun)


def test_more_values_and_seeds_join_a_plan(ask: Ask, begun: AblationFolder) -> None:
    document = checked_plan(ask(["method=ce,ts"], 3, {"training.device": "auto"}), begun)
    assert list(document["cells"]) == ["method=ce", "method=kd", "method=ts"]


def test_batches_that_cells_would_choose_are_refused(ask: Ask, place: AblationFolder) -> None:
    with pytest.raises(ConfigError, match="batches of different sizes"):
        checked_plan(ask(["method=ce"], 1, {"training.batch_size": "auto"}), place)


def test_an_unknown_teacher_is_refused_where_a_method_needs_it(
    ask: Ask, place: AblationFolder
) -> None:
    changes = {"model.teacher": "resnet43"}
    with pytest.raises(ConfigError, match='did you mean "resnet34"'):
        checked_plan(ask(["method=ce,kd"], 1, changes), place)
    assert list(checked_plan(ask(["method=ce"], 1, changes), place)["cells"]) == ["method=ce"]


@pytest.mark.parametrize("text", ["{", "[]", "\x80"])
def test_a_plan_that_can_t_be_read(ask: Ask, place: AblationFolder, text: str) -> None:
    place.folder.mkdir()
    place.plan.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"plan\.json, is damaged"):
        checked_plan(ask(["method=ce"]), place)


def test_a_folder_is_held_by_one_at_a_time(place: AblationFolder) -> None:
    with hold(place), pytest.raises(RunError, match="in use by another tser ablate"), hold(place):
        raise AssertionError
    with hold(place):
        assert place.folder.is_dir()


def test_the_teacher_that_the_ablation_began_with(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(b"weights")
    record = {"file": str(file), "sha256": hashlib.sha256(b"weights").hexdigest()}
    document = {"teachers": {"key": record}}
    assert shared_teacher(document, "another") is None
    assert shared_teacher(document, "key") == str(file)
    file.write_bytes(b"others")
    with pytest.raises(ConfigError, match=r"teacher\.safetensors, the teacher .* has changed"):
        shared_teacher(document, "key")
    file.unlink()
    with pytest.raises(ConfigError, match="is gone or has changed"):
        shared_teacher(document, "key")


def test_cells_share_a_teacher_by_data_architecture_and_split(make_config: MakeConfig) -> None:
    key = teacher_key(make_config())
    assert teacher_key(make_config({"method.name": "kd", "training.seed": 1})) == key
    others = [
        make_config({"model.teacher": "resnet18"}),
        make_config({"data.validation_fraction": 0.25}),
    ]
    assert len({key, *map(teacher_key, others)}) == 3


def test_where_a_teacher_is_found(
    make_config: MakeConfig, place: AblationFolder, teacher_file: Path
) -> None:
    def finish(runs_dir: Path) -> None:
        run = folder.create(runs_dir, "teacher", config)
        run.update_status(state="finished", model="resnet20", validation_fraction=0.0)

    config = make_config()
    assert find_folder(make_config({"model.teacher": str(teacher_file)}), place) == place.own_runs
    assert find_folder(config, place) is None
    finish(place.runs_dir)
    assert find_folder(config, place) == place.runs_dir
    finish(place.own_runs)
    assert find_folder(config, place) == place.own_runs
