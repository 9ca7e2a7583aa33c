"""The folder of one cell of an ablation: its name, its settings, its row."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.engine.results import RESULT
from tser_cli.engine.ablation.folder import (
    SETTINGS,
    cell_folder,
    cell_name,
    find_cell,
    result_row,
    write_settings,
)
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.find import find_unfinished
from tser_cli.engine.runs.folder import Run, create
from tser_cli.settings.config import Config
from tser_cli.settings.recipe import read, resolve


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
def test_folders_are_named_by_what_is_varied(
    make_cell: Callable[..., Cell], varied: dict[str, Any], name: str
) -> None:
    cell = make_cell(varied, 3)
    assert cell_name(cell) == name
    assert cell_folder(cell, Path("x")) == Path("x/cells") / name


def test_no_two_cells_share_a_folder(make_cell: Callable[..., Cell]) -> None:
    values = ["a/b", "a-b", "a b", "../a", "x" * 300, "x" * 301, "é" * 300, "[a]", "a\nb"]
    names = [cell_name(make_cell({"model.teacher": value})) for value in values]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and len(name.encode()) < 255 for name in names)


def test_a_row_of_a_cell_that_was_never_run(make_cell: Callable[..., Cell], tmp_path: Path) -> None:
    cell = make_cell({"method.name": "kd"}, 2)
    row = result_row(cell, tmp_path)
    assert row == {"seed": 2, "state": "missing", "folder": "cells/method=kd_s2"}


@pytest.mark.parametrize("state", ["running", "failed", "stopped"])
def test_a_row_of_an_unfinished_cell_says_so(
    make_cell: Callable[..., Cell], tmp_path: Path, state: str
) -> None:
    cell = make_cell({"method.name": "kd"})
    create(cell_folder(cell, tmp_path), "student", cell.config).update_status(state=state)
    assert find_cell(cell, tmp_path) is None
    row = result_row(cell, tmp_path)
    assert row == {"seed": 0, "state": state, "folder": "cells/method=kd_s0"}


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
    make_cell: Callable[..., Cell],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
) -> None:
    cell = make_cell({"method.name": "kd"}, 2)
    sound = finished(cell, tmp_path)
    assert find_cell(cell, tmp_path) == sound
    assert result_row(cell, tmp_path)["accuracy"] == 0.5
    sound.update_status(result={**RESULT, **change})
    assert find_cell(cell, tmp_path) is None
    assert "method=kd, seed 2 counts as not trained" in caplog.text
    assert result_row(cell, tmp_path)["state"] == "damaged"


@pytest.mark.parametrize("name", ["status.json", "environment.json"])
def test_a_cell_with_a_damaged_file_is_trained_again(
    make_cell: Callable[..., Cell], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    cell = make_cell({"method.name": "kd"})
    run = finished(cell, tmp_path)
    (run.folder / name).write_text('{"accuracy": NaN}')
    assert find_cell(cell, tmp_path) is None
    assert str(run.folder / name) in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"\xff\0", b"epoch,seconds\n1,x\n"])
def test_an_old_cell_without_its_tables_is_trained_again(
    make_cell: Callable[..., Cell],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
) -> None:
    cell = make_cell({"method.name": "kd"})
    run = create(cell_folder(cell, tmp_path), "student", cell.config)
    run.update_status(state="finished", accuracy=0.5)
    if content is not None:
        for name in ("metrics.csv", "per_timestep.csv", "energy.csv"):
            (run.folder / name).write_bytes(content)
    assert find_cell(cell, tmp_path) is None
    assert f"the result of {run.folder} is damaged" in caplog.text


def test_a_cell_s_paths_hold_from_anywhere(
    make_cell: Callable[..., Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = make_cell({"method.name": "kd"}, **{"data.dir": "images"})
    home = write_settings(cell, Path("out"))
    assert home == tmp_path / "out" / "cells" / "method=kd_s0"
    stated = tomllib.loads((home / "cell.toml").read_text())
    assert stated["data"]["dir"] == str(tmp_path / "images")


def test_a_cell_goes_on_where_the_images_have_moved(
    make_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    def settings_at(folder: str) -> tuple[Path, Config]:
        home = write_settings(
            make_cell({"method.name": "kd"}, **{"data.dir": str(tmp_path / folder)}), tmp_path
        )
        return home, resolve([read(str(home / SETTINGS))])

    home, before = settings_at("images")
    run = folder.create(home, "student", before)
    run.update_status(state="stopped")
    _, moved = settings_at("moved")
    assert moved.data.dir == str(tmp_path / "moved")
    assert find_unfinished(home, "student", moved, must=False) == run
