"""What a run folder says: of every state, and of any content."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import make_config
from tser_cli.base import files
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.folder import Run, time_of
from tser_cli.engine.runs.record import (
    RESULT,
    RunResult,
    find_result,
    read_record,
    with_result,
)

GONE = 2**22 + 1  # above Linux's largest process id


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A student's run that has just begun."""
    return folder.create(tmp_path, "student", make_config())


def test_a_run_that_has_begun(run: Run) -> None:
    entry = read_record(run)
    assert (entry.kind, entry.dataset, entry.student) == ("student", "digits", "resnet20")
    assert (entry.timesteps, entry.method, entry.seed) == (2, "tser", 0)
    assert (entry.state, entry.accuracy, entry.trouble) == ("running", None, "")
    assert entry.teacher is None  # not yet found
    assert entry.when == time_of(run.status(), "updated")
    assert entry.settings["model.student"] == "resnet20"
    run.update_environment(teacher={"model": "vgg11", "source": "/somewhere"})
    assert read_record(run).teacher == "vgg11"


def test_a_finished_student(run: Run) -> None:
    result = {"accuracy": 0.5, "energy_pj": 8.0, "teacher": "resnet34", "method": "tser+entropy"}
    run.update_status(state="finished", result=result, finished="2030-01-01T00:00:00+00:00")
    entry = read_record(run)
    assert (entry.state, entry.accuracy, entry.energy_pj) == ("finished", 0.5, 8.0)
    assert (entry.teacher, entry.method) == ("resnet34", "tser+entropy")
    assert entry.when == 1893456000.0
    assert entry.to_json()["folder"] == str(run.folder)
    assert "settings" not in entry.to_json()


def test_a_teacher_has_no_student(tmp_path: Path) -> None:
    entry = read_record(folder.create(tmp_path, "teacher", make_config()))
    assert (entry.kind, entry.teacher) == ("teacher", "resnet20")
    assert (entry.student, entry.timesteps, entry.method) == (None, None, None)


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
    status = {"state": "running", "pid": pid, "host": host}
    (run.folder / "status.json").write_text(json.dumps(status))
    assert read_record(run).state == state


@pytest.mark.parametrize("name", ["status.json", "environment.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "\0", '{"pid": "x", "command": 3}'])
def test_damage_is_the_entry_s_trouble(run: Run, name: str, content: str) -> None:
    (run.folder / name).write_text(content)
    entry = read_record(run)
    assert entry.state == "damaged"
    assert name in entry.trouble


@pytest.mark.parametrize("content", [b"[", b"a = [" * 10_000, b"\xff"])
def test_settings_that_are_no_toml(run: Run, content: bytes) -> None:
    (run.folder / "config.toml").write_bytes(content)
    entry = read_record(run)
    assert (entry.state, entry.settings) == ("damaged", {})
    assert "config.toml can't be read" in entry.trouble


def test_missing_settings_do_not_list_the_recipes_and_a_pipe_is_not_waited_for(run: Run) -> None:
    (run.folder / "config.toml").unlink()
    assert read_record(run).trouble == f"{run.folder / 'config.toml'} is missing, or no file"
    (run.folder / "status.json").unlink()
    os.mkfifo(run.folder / "status.json")
    assert read_record(run).state == "damaged"


def test_nonsense_is_none(run: Run) -> None:
    (run.folder / "config.toml").write_text(
        "plugins = ['evil.py']\n[model]\ntimesteps = 'two'\nstudent = [1]\n"
        "[training]\nseed = true\n[data]\nname = 3\n"
    )
    result = {"accuracy": 1.5, "energy_pj": -1, "teacher": ["x"], "method": {}, "model": 3}
    status = {"state": "finished", "dataset": "", "result": result}
    status |= {"started": "0001-01-01T00:00:00"}  # before all calendars
    (run.folder / "status.json").write_text(json.dumps(status))
    entry = read_record(run)
    assert entry.dataset == "?"
    found = (entry.student, entry.timesteps, entry.seed, entry.teacher, entry.method)
    assert found == (None,) * 5
    assert (entry.accuracy, entry.energy_pj, entry.state) == (None, None, "finished")
    assert entry.when <= 0.0


def test_the_size_of_a_folder_follows_no_links(run: Run) -> None:
    files_of_run = [path for path in run.folder.rglob("*") if path.is_file()]
    assert read_record(run).size == sum(path.stat().st_size for path in files_of_run)
    before = read_record(run).size
    (run.folder / "inner").mkdir()
    (run.folder / "inner" / "a").write_bytes(b"12345")
    (run.folder / "loop").symlink_to(run.folder)
    assert read_record(run).size - before == 5 + (run.folder / "loop").lstat().st_size


Damage = Callable[[dict[str, Any]], Any]


@pytest.fixture
def result(tmp_path: Path) -> RunResult:
    """The result of a student of two steps."""
    steps = tuple(
        {"t": t, "accuracy_at_t": 0.1 * t, "accuracy_cumulative": 0.2, "teacher_accuracy": None}
        for t in (1, 2)
    )
    return RunResult(
        folder=tmp_path,
        kind="student",
        model="resnet20",
        dataset="digits",
        method="tser",
        timesteps=2,
        images=11,
        accuracy=1 / 3,
        teacher="resnet34",
        teacher_accuracy=0.9,
        best_validation_accuracy=None,
        energy_pj=48375.99999999999,
        ann_energy_pj=1e6,
        seconds=12.5,
        per_timestep=steps,
    )


@pytest.fixture
def measured(tmp_path: Path, result: RunResult) -> Run:
    """A run that recorded a result."""
    made = Run(tmp_path)
    made.update_status(state="finished", epoch=2, **{RESULT: result.to_json()})
    return made


def test_a_result_is_read_as_it_was_recorded(measured: Run, result: RunResult) -> None:
    assert find_result(measured) == result
    assert result.name == measured.name
    measured.update_status(state="finished", finished="2025-01-01T00:00:00+00:00")
    assert find_result(measured) == result


def test_a_run_that_was_moved_has_its_result_where_it_lies_now(
    measured: Run, result: RunResult, tmp_path: Path
) -> None:
    elsewhere = tmp_path.with_name(f"{tmp_path.name}_moved")
    tmp_path.rename(elsewhere)
    assert find_result(Run(elsewhere)) == replace(result, folder=elsewhere)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: None,
        lambda entry: [entry],
        lambda entry: {},
        lambda entry: {name: value for name, value in entry.items() if name != "accuracy"},
        lambda entry: {**entry, "accuracy": "high"},
        lambda entry: {**entry, "accuracy": None},
        lambda entry: {**entry, "per_timestep": 5},
        lambda entry: {**entry, "per_timestep": None},
        lambda entry: {**entry, "per_timestep": "t"},
        lambda entry: {**entry, "per_timestep": [1, 2]},
        lambda entry: {**entry, "accuracy": 17.0},
        lambda entry: {**entry, "teacher_accuracy": -0.1},
        lambda entry: {**entry, "per_timestep": entry["per_timestep"][1:]},
        lambda entry: {**entry, "per_timestep": [{"t": 1}, {"t": 2}]},
    ],
    ids=range(14),
)
def test_a_damaged_entry_is_no_result(measured: Run, damage: Damage) -> None:
    measured.update_status(**{RESULT: damage(measured.status()[RESULT])})
    assert find_result(measured) is None


def test_a_record_has_the_result_and_what_it_says(measured: Run, result: RunResult) -> None:
    (measured.folder / "config.toml").write_text("")
    record = read_record(measured)
    assert record.result == result
    assert record.accuracy == result.accuracy
    assert with_result(record.status)["images"] == 11
    measured.update_status(result="?")
    assert read_record(measured).result is None
    assert find_result(Run(measured.folder / "nowhere")) is None


def test_each_file_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    before = files.read_regular

    def counted(path: Path, limit: int) -> bytes:
        read.append(path.name)
        return before(path, limit)

    monkeypatch.setattr(files, "read_regular", counted)
    record = read_record(run)
    assert record.state == "running" and record.when > 0 and record.result is None
    assert read == ["status.json", "environment.json", "config.toml"]
