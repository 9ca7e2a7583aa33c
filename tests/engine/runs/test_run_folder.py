"""Run folders: made and described."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from tser_cli.base.errors import RunError
from tser_cli.base.version import __version__
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.folder import Run
from tser_cli.settings.config import Config
from tser_cli.settings.recipe import read, resolve

MakeConfig = Callable[..., Config]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("teacher", r"resnet34_s7_\d{8}-\d{6}"),
        ("student", r"resnet20_T3_kd_s7_\d{8}-\d{6}"),
    ],
)
def test_the_name_says_model_steps_method_seed_and_time(
    tmp_path: Path, make_config: MakeConfig, kind: str, name: str
) -> None:
    config = make_config(
        {
            "model.teacher": "resnet34",
            "model.timesteps": 3,
            "method.name": "kd",
            "training.seed": 7,
        }
    )
    run = folder.create(tmp_path, kind, config)
    assert run.folder.parent == tmp_path / kind / "digits"
    assert re.fullmatch(name, run.name)
    assert run.kind == kind


def test_a_run_of_other_data_and_another_network_is_called_after_them(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    run = folder.create(tmp_path, "student", make_config(), dataset="own", model="MyNet")
    assert run.folder.parent == tmp_path / "student" / "own"
    assert re.fullmatch(r"MyNet_T2_tser_s0_\d{8}-\d{6}", run.name)


def test_config_toml_is_a_recipe_of_the_same_settings(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config({"optimizer.lr": 0.1 + 0.2, "schedule.milestones": [1.5, 3.0]})
    run = folder.create(tmp_path, "student", config)
    assert run.config() == config
    assert resolve([read(str(run.folder))]) == config


def test_status_and_environment_say_what_runs_where(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["tser", "distill", "--seed", "5"])
    run = folder.create(tmp_path, "student", make_config({"training.seed": 5}))
    status = json.loads((run.folder / "status.json").read_text())
    assert (status["kind"], status["state"], status["epoch"]) == ("student", "running", 0)
    assert (status["pid"], status["host"]) == (os.getpid(), socket.gethostname())
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["tser"] == __version__
    assert environment["command"] == ["tser", "distill", "--seed", "5"]
    assert environment["seed"] == 5
    assert environment["packages"]["torch"] == version("torch")
    run.update_environment(wall_seconds=1.5)
    run.update_status(state="stopped", why="signal")
    assert run.environment() == {**environment, "wall_seconds": 1.5}
    changed = {"state": "stopped", "why": "signal", "updated": run.status()["updated"]}
    assert run.status() == {**status, **changed}


DAMAGED = [
    *("", "{", "[1]", "\xff", "[" * 200_000, '{"state": NaN}', '{"state": "\\ud800"}'),
    *('{"state": ["finished"]}', '{"state": "\\u0000"}', '{"pid": 1e400}', '{"resumable": 3}'),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_status_names_its_folder(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunError, match=f"run folder {tmp_path} is damaged"):
        Run(tmp_path).status()


@pytest.mark.parametrize("content", ["[]", '{"plugins": 3}', '{"teacher": []}', '{"x": Infinity}'])
def test_a_damaged_environment_names_its_folder(tmp_path: Path, content: str) -> None:
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(RunError, match=f"run folder {tmp_path} is damaged"):
        Run(tmp_path).environment()


def test_a_run_whose_status_is_damaged_while_it_trains_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "status.json").write_text("{")
    Run(tmp_path).update_status(state="running")
    assert Run(tmp_path).status()["state"] == "running"
    assert "is damaged" in caplog.text


def test_runs_of_the_same_second_get_folders_of_their_own(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "run_name", lambda *what: "same")
    barrier, made = threading.Barrier(4), list[Run]()
    monkeypatch.setattr(
        folder,
        "make_folder",
        lambda path: (path.mkdir(parents=True, exist_ok=True), barrier.wait()),
    )

    def make(seed: int) -> None:
        made.append(folder.create(tmp_path, "student", make_config({"training.seed": seed})))

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.name for run in made} == {"same", "same-2", "same-3", "same-4"}
    assert {run.config().training.seed for run in made} == set(range(4))


def test_a_place_that_can_t_hold_runs(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="can't be written"):
        folder.create(tmp_path / "runs", "student", make_config())


def test_a_run_s_name_tells_of_added_entropy(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config({"method.name": "kd", "method.entropy_weight": 0.1})
    assert "_kd+entropy_s0_" in folder.create(tmp_path, "student", config).name
