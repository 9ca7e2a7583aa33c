"""Run folders: made, described, found again."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tser_cli import __version__
from tser_cli.config import Config, keys_where
from tser_cli.engine.runs import run_folder
from tser_cli.engine.runs.run_folder import Run
from tser_cli.errors import ConfigError, RunError
from tser_cli.recipe import read, resolve

MakeConfig = Callable[..., Config]


def write_status(folder: Path, **status: Any) -> Run:
    """A run folder with no more than a status."""
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(status))
    return Run(folder)


@pytest.fixture
def unfinished(tmp_path: Path, make_config: MakeConfig) -> Callable[..., Run]:
    """`unfinished(state=..., changes=...)`: a student's run that did not come to its end."""

    def make(state: str = "stopped", changes: dict[str, Any] | None = None, **status: Any) -> Run:
        run = run_folder.create(tmp_path, "student", make_config(changes))
        run.update_status(state=state, **status)
        return run

    return make


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
    run = run_folder.create(tmp_path, kind, config)
    assert run.folder.parent == tmp_path / kind / "digits"
    assert re.fullmatch(name, run.name)
    assert run.kind == kind


def test_config_toml_is_a_recipe_of_the_same_settings(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config({"optimizer.lr": 0.1 + 0.2, "schedule.milestones": [1.5, 3.0]})
    run = run_folder.create(tmp_path, "student", config)
    assert run.config() == config
    assert resolve([read(str(run.folder))]) == config


def test_status_and_environment_say_what_runs_where(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["tser", "distill", "--seed", "5"])
    run = run_folder.create(tmp_path, "student", make_config({"training.seed": 5}))
    status = json.loads((run.folder / "status.json").read_text())
    assert (status["kind"], status["state"], status["epoch"]) == ("student", "running", 0)
    assert (status["pid"], status["host"]) == (os.getpid(), socket.gethostname())
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["tser"] == __version__
    assert environment["command"] == ["tser", "distill", "--seed", "5"]
    assert environment["seed"] == 5
    packages = environment["packages"]
    assert packages["torch"] == run_folder.version("torch")
    assert set(packages) >= {"torchvision", "spikingjelly", "accelerate", "numpy"}
    assert {"python", "platform", "processor", "cpu_count", "git"} <= set(environment)
    run.update_environment(wall_seconds=1.5)
    run.update_status(state="stopped", why="signal")
    assert run.environment() == {**environment, "wall_seconds": 1.5}
    changed = {"state": "stopped", "why": "signal", "updated": run.status()["updated"]}
    assert run.status() == {**status, **changed}


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_a_damaged_status_is_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content, encoding="latin-1")
    assert Run(tmp_path).status() == {}
    with pytest.raises(RunError, match="unreadable, not finished"):
        run_folder.open_run(tmp_path)


def test_runs_of_the_same_second_get_folders_of_their_own(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "run_name", lambda kind, config: "same")
    barrier, made = threading.Barrier(4), list[Run]()
    monkeypatch.setattr(
        run_folder,
        "make_folder",
        lambda path: (path.mkdir(parents=True, exist_ok=True), barrier.wait()),
    )

    def make(seed: int) -> None:
        made.append(run_folder.create(tmp_path, "student", make_config({"training.seed": seed})))

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
        run_folder.create(tmp_path / "runs", "student", make_config())


def test_the_newest_is_the_one_that_finished_last(tmp_path: Path) -> None:
    place = tmp_path / "student" / "digits"
    early = write_status(place / "b", state="finished", finished="2025-01-01T10:00:00+00:00")
    last = write_status(
        place / "a", state="finished", model="resnet18", finished="2025-01-01T11:00:00+00:00"
    )
    write_status(place / "c", state="running", started="2025-01-02T00:00:00+00:00")
    os.utime(early.folder / "status.json", (2e9, 2e9))
    assert run_folder.newest_finished(tmp_path, "student") == last
    assert run_folder.newest_finished(tmp_path, "student", "digits", "resnet18") == last
    assert run_folder.newest_finished(tmp_path, "student", model="resnet20") is None
    assert run_folder.newest_finished(tmp_path, "teacher") is None
    assert run_folder.newest_finished(tmp_path, "student", "mnist") is None


def test_times_of_other_zones_are_compared_as_instants(tmp_path: Path) -> None:
    place = tmp_path / "student" / "digits"
    write_status(place / "a", state="finished", finished="2025-06-01T14:00:00+02:00")
    last = write_status(place / "b", state="finished", finished="2025-06-01T13:00:00+00:00")
    assert run_folder.newest_finished(tmp_path, "student") == last


def test_all_runs_come_newest_first(tmp_path: Path) -> None:
    for name, day in (("a", 2), ("b", 3), ("c", 1)):
        write_status(
            tmp_path / "teacher" / "digits" / name, started=f"2025-01-0{day}T00:00:00+00:00"
        )
    write_status(tmp_path / "teacher" / "digits" / "d")
    assert [run.name for run in run_folder.all_runs(tmp_path)] == ["b", "a", "c", "d"]
    assert list(run_folder.all_runs(tmp_path / "missing")) == []


def test_open_run_hints_at_the_nearest_folder(tmp_path: Path) -> None:
    write_status(tmp_path / "resnet18_T2", state="finished")
    assert run_folder.open_run(tmp_path / "resnet18_T2").name == "resnet18_T2"
    with pytest.raises(RunError, match=r'not a run folder \(did you mean "resnet18_T2"\?\)'):
        run_folder.open_run(tmp_path / "resnet18_T")
    with pytest.raises(RunError, match=r"not a run folder: no status\.json"):
        run_folder.open_run(tmp_path / "there" / "is" / "nothing")


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_open_run_wants_a_finished_one(unfinished: Callable[..., Run], state: str) -> None:
    with pytest.raises(RunError, match=f"is {state}, not finished; repeat the command"):
        run_folder.open_run(unfinished(state).folder)


@pytest.mark.parametrize("must", [True, False])
@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_an_unfinished_run_of_the_same_settings_is_found(
    unfinished: Callable[..., Run], tmp_path: Path, make_config: MakeConfig, state: str, must: bool
) -> None:
    run = unfinished(state)
    assert run_folder.find_unfinished(tmp_path, "student", make_config(), must) == run
    assert run_folder.find_unfinished(tmp_path, "teacher", make_config(), False) is None


@pytest.mark.parametrize("status", [{"state": "finished"}, {"state": "failed", "resumable": False}])
def test_nothing_to_go_on_with(
    unfinished: Callable[..., Run], tmp_path: Path, make_config: MakeConfig, status: dict[str, Any]
) -> None:
    unfinished(**status)
    assert run_folder.find_unfinished(tmp_path, "student", make_config(), False) is None
    with pytest.raises(RunError, match="--resume must: no unfinished student run of digits"):
        run_folder.find_unfinished(tmp_path, "student", make_config(), True)


def test_other_settings_begin_anew_or_are_listed(
    unfinished: Callable[..., Run], tmp_path: Path, make_config: MakeConfig
) -> None:
    run = unfinished()
    other = make_config({"optimizer.lr": 0.5, "training.batch_size": 4, "training.epochs": 9})
    assert run_folder.find_unfinished(tmp_path, "student", other, False) is None
    with pytest.raises(ConfigError) as error:
        run_folder.find_unfinished(tmp_path, "student", other, True)
    lines = str(error.value).splitlines()
    assert str(run.folder) in lines[0]
    assert lines[1:] == ["  optimizer.lr: 0.1 -> 0.5", "  training.batch_size: 8 -> 4"]


def test_the_newest_of_several_with_the_same_settings_is_taken(
    unfinished: Callable[..., Run], tmp_path: Path, make_config: MakeConfig
) -> None:
    unfinished(started="2025-01-01T00:00:00+00:00")
    newer = unfinished(started="2025-01-02T00:00:00+00:00")
    unfinished(started="2025-01-03T00:00:00+00:00", changes={"optimizer.lr": 0.3})
    assert run_folder.find_unfinished(tmp_path, "student", make_config(), True) == newer


CHANGES = {
    "training.epochs": 9,
    "training.device": "auto",
    "training.accumulate": 2,
    "training.eval_batch_size": 3,
    "training.checkpoint_every": "9min",
    "training.tensorboard": True,
    "data.workers": 3,
    "data.dir": "/elsewhere",
    "plugins": ["mine"],
}


def test_these_settings_may_change_on_a_resume(
    unfinished: Callable[..., Run], tmp_path: Path, make_config: MakeConfig
) -> None:
    assert set(CHANGES) == keys_where(lambda policy: policy.resume)
    run = unfinished()
    assert run_folder.find_unfinished(tmp_path, "student", make_config(CHANGES), True) == run


def test_another_folder_of_one_s_own_images_is_another_run(
    unfinished: Callable[..., Run], tmp_path: Path, make_config: MakeConfig
) -> None:
    mine = {"data.name": "imagefolder", "data.dir": "/mine"}
    run = unfinished(changes=mine)
    assert run_folder.find_unfinished(tmp_path, "student", make_config(mine), True) == run
    with pytest.raises(ConfigError, match=r"data\.dir: '/mine' -> '/other'"):
        other = make_config({**mine, "data.dir": "/other"})
        run_folder.find_unfinished(tmp_path, "student", other, True)


def test_a_run_of_version_0_1_goes_on(
    unfinished: Callable[..., Run], tmp_path: Path, make_config: MakeConfig
) -> None:
    run = unfinished(changes={"method.name": "kd"})
    file = run.folder / "config.toml"
    document = tomllib.loads(file.read_text())
    weights = {"feature_weight": 0.0, "alpha": 0.0, "beta": 0.0, "lam": 0.0, "target": "correct"}
    document["method"] |= weights
    document["training"]["label_smoothing"] = document["method"].pop("label_smoothing")
    file.write_text(tomli_w.dumps(document))
    kd = make_config({"method.name": "kd"})
    assert run.config() == kd
    assert run_folder.find_unfinished(tmp_path, "student", kd, True) == run


def test_a_run_s_name_tells_of_added_entropy(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config({"method.name": "kd", "method.entropy_weight": 0.1})
    assert "_kd+entropy_s0_" in run_folder.create(tmp_path, "student", config).name


def test_a_run_with_damaged_settings_is_passed_over(
    unfinished: Callable[..., Run], tmp_path: Path, make_config: MakeConfig
) -> None:
    run = unfinished()
    (run.folder / "config.toml").write_text("[data\n")
    assert run_folder.find_unfinished(tmp_path, "student", make_config(), False) is None
    with pytest.raises(ConfigError, match=r"config\.toml"):
        run_folder.find_unfinished(tmp_path, "student", make_config(), True)


def test_an_automatic_batch_size_is_that_of_the_unfinished_run(
    tmp_path: Path, make_config: MakeConfig, unfinished: Callable[..., Run]
) -> None:
    automatic = make_config({"training.batch_size": "auto"})
    assert run_folder.begun_batch_size(tmp_path, "student", automatic) == 0
    unfinished(changes={"training.batch_size": 12})
    unfinished(changes={"training.batch_size": 24, "optimizer.lr": 0.7})
    (unfinished(changes={"training.batch_size": 48}).folder / "config.toml").write_text("[")
    assert run_folder.begun_batch_size(tmp_path, "student", automatic) == 12
    unfinished(state="finished", changes={"training.batch_size": 6})
    assert run_folder.begun_batch_size(tmp_path, "student", automatic) == 12


@pytest.mark.parametrize("size", ["many", "-4", -1, True, 2.5])
def test_what_is_no_batch_size(make_config: MakeConfig, size: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        make_config({"training.batch_size": size})
