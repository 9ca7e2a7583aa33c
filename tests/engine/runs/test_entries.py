"""Runs as a list shows them: of every state, and of any content."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tser_cli.engine.runs import folder
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.record import entry_of, size_of
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]
GONE = 2**22 + 1  # above Linux's largest process id


@pytest.fixture
def run(tmp_path: Path, make_config: MakeConfig) -> Run:
    """A student's run that has just begun."""
    return folder.create(tmp_path, "student", make_config())


def write(run: Run, name: str, document: Any) -> None:
    (run.folder / name).write_text(json.dumps(document))


def test_a_run_that_has_begun(run: Run) -> None:
    entry = entry_of(run)
    assert (entry.kind, entry.dataset, entry.student) == ("student", "digits", "resnet20")
    assert (entry.timesteps, entry.method, entry.seed) == (2, "tser", 0)
    assert (entry.state, entry.accuracy, entry.trouble) == ("running", None, "")
    assert entry.teacher is None  # not yet found
    assert entry.when == run.time_of("updated")
    assert entry.settings["model.student"] == "resnet20"


def test_a_finished_student(run: Run) -> None:
    result = {"accuracy": 0.5, "energy_pj": 8.0, "teacher": "resnet34", "method": "tser+entropy"}
    run.update_status(state="finished", result=result, finished="2030-01-01T00:00:00+00:00")
    entry = entry_of(run)
    assert (entry.state, entry.accuracy, entry.energy_pj) == ("finished", 0.5, 8.0)
    assert (entry.teacher, entry.method) == ("resnet34", "tser+entropy")
    assert entry.when == 1893456000.0
    assert entry.to_json()["folder"] == str(run.folder)
    assert "settings" not in entry.to_json()


def test_a_teacher_has_no_student(tmp_path: Path, make_config: MakeConfig) -> None:
    entry = entry_of(folder.create(tmp_path, "teacher", make_config()))
    assert (entry.kind, entry.teacher) == ("teacher", "resnet20")
    assert (entry.student, entry.timesteps, entry.method) == (None, None, None)


def test_the_teacher_of_a_run_that_is_not_finished(run: Run) -> None:
    run.update_environment(teacher={"model": "vgg11", "source": "/somewhere"})
    assert entry_of(run).teacher == "vgg11"


@pytest.mark.parametrize(
    ("pid", "host", "state"),
    [
        (os.getpid(), socket.gethostname(), "running"),
        (GONE, socket.gethostname(), "killed"),
        (-1, socket.gethostname(), "killed"),
        (2**62, socket.gethostname(), "killed"),
        (GONE, "another", "running"),  # nobody here can know
    ],
    # names that are the same in every process that runs tests
    ids=["alive", "gone", "negative", "too large", "elsewhere"],
)
def test_a_killed_process_is_told(run: Run, pid: int, host: str, state: str) -> None:
    write(run, "status.json", {"state": "running", "pid": pid, "host": host})
    assert entry_of(run).state == state


@pytest.mark.parametrize("name", ["status.json", "environment.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "\0", '{"pid": "x", "command": 3}'])
def test_damage_is_the_entry_s_trouble(run: Run, name: str, content: str) -> None:
    (run.folder / name).write_text(content)
    entry = entry_of(run)
    assert entry.state == "damaged"
    assert name in entry.trouble


@pytest.mark.parametrize("content", [b"[", b"a = [" * 10_000, b"\xff"])
def test_settings_that_are_no_toml(run: Run, content: bytes) -> None:
    (run.folder / "config.toml").write_bytes(content)
    entry = entry_of(run)
    assert (entry.state, entry.settings) == ("damaged", {})
    assert "config.toml can't be read" in entry.trouble


def test_missing_settings_do_not_list_the_recipes(run: Run) -> None:
    (run.folder / "config.toml").unlink()
    assert entry_of(run).trouble == f"{run.folder / 'config.toml'} is missing, or no file"


def test_a_pipe_is_not_waited_for(run: Run) -> None:
    (run.folder / "status.json").unlink()
    os.mkfifo(run.folder / "status.json")
    assert entry_of(run).state == "damaged"


def test_nonsense_is_none(run: Run) -> None:
    (run.folder / "config.toml").write_text(
        "plugins = ['evil.py']\n[model]\ntimesteps = 'two'\nstudent = [1]\n"
        "[training]\nseed = true\n[data]\nname = 3\n"
    )
    result = {"accuracy": 1.5, "energy_pj": -1, "teacher": ["x"], "method": {}, "model": 3}
    write(run, "status.json", {"state": "finished", "dataset": "", "result": result})
    entry = entry_of(run)
    assert entry.dataset == "?"
    found = (entry.student, entry.timesteps, entry.seed, entry.teacher, entry.method)
    assert found == (None,) * 5
    assert (entry.accuracy, entry.energy_pj, entry.state) == (None, None, "finished")


def test_a_time_beyond_all_calendars(run: Run) -> None:
    write(run, "status.json", {"state": "finished", "started": "0001-01-01T00:00:00"})
    assert entry_of(run).when <= 0.0


def test_the_size_of_a_folder_follows_no_links(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"123")
    before = size_of(tmp_path)
    assert before == 8
    (tmp_path / "loop").symlink_to(tmp_path)
    assert size_of(tmp_path) - before == (tmp_path / "loop").lstat().st_size
    assert size_of(tmp_path / "nowhere") == 0
