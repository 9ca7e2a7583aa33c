"""A run folder: its files, its name, its lock, and what it was made with."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import make_config
from tser_cli.base import __version__
from tser_cli.base.errors import RunError
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.folder import Run, environment
from tser_cli.settings.recipe import read, resolve


@pytest.mark.parametrize(
    ("kind", "added", "name"),
    [
        ("teacher", {}, r"resnet34_s7_\d{8}-\d{6}"),
        ("student", {}, r"resnet20_T3_kd_s7_\d{8}-\d{6}"),
        ("student", {"method.entropy_weight": 0.1}, r"resnet20_T3_kd\+entropy_s7_\d{8}-\d{6}"),
    ],
)
def test_the_name_says_model_steps_method_seed_and_time(
    tmp_path: Path, kind: str, added: dict[str, float], name: str
) -> None:
    stated = {"model.teacher": "resnet34", "model.timesteps": 3, "method.name": "kd"}
    config = make_config({**stated, "training.seed": 7, **added})
    run = folder.create(tmp_path, kind, config)
    assert run.folder.parent == tmp_path / kind / "digits"
    assert re.fullmatch(name, run.name)
    assert run.kind == kind


def test_a_run_of_other_data_and_another_network_is_called_after_them(tmp_path: Path) -> None:
    run = folder.create(tmp_path, "student", make_config(), dataset="own", model="MyNet")
    assert run.folder.parent == tmp_path / "student" / "own"
    assert re.fullmatch(r"MyNet_T2_tser_s0_\d{8}-\d{6}", run.name)


def test_config_toml_is_a_recipe_of_the_same_settings(tmp_path: Path) -> None:
    config = make_config({"optimizer.lr": 0.1 + 0.2, "schedule.milestones": [1.5, 3.0]})
    run = folder.create(tmp_path, "student", config)
    assert run.config() == config
    assert resolve([read(str(run.folder))]) == config


def test_status_and_environment_say_what_runs_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert environment["packages"].keys() >= {"torchvision", "spikingjelly", "accelerate", "numpy"}
    assert {"python", "platform", "processor", "cpu_count", "git"} <= environment.keys()
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "run_name", lambda *what: "same")
    barrier, made = threading.Barrier(4), list[Run]()
    monkeypatch.setattr(
        folder.files,
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


def test_a_place_that_can_t_hold_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="can't be written"):
        folder.create(tmp_path / "runs", "student", make_config())
    with pytest.raises(RunError, match="can't be written"):
        Run(tmp_path / "runs" / "run").lock()


HOLDER = """
import sys
from pathlib import Path
from tser_cli.engine.runs.folder import Run
run = Run(Path(sys.argv[1]))
with run.lock():
    run.update_status(state="running")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return folder.create(tmp_path, "student", make_config())


@pytest.fixture
def holder(run: Run) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `run` until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_at_once_and_told_who_holds_it(
    run: Run, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(RunError) as error:
        run.lock()  # the holder lets go at the end of the test alone
    message = f"in use by process {holder.pid} on {socket.gethostname()}"
    assert message in str(error.value)
    assert str(run.folder) in str(error.value)
    # killed, its lock is free at once
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run.lock():
        pass


def test_a_lock_is_free_again_after_its_block_or_an_error(run: Run) -> None:
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    held = run.lock()
    with held, pytest.raises(RunError, match="in use by process"):
        run.lock()
    with run.lock():
        pass
    del held  # until here it was the block's end that freed the lock, not the last reference


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_lock_is_left_as_it_is(run: Run, tmp_path: Path, kind: str) -> None:
    path, other = run.folder / ".lock", tmp_path / "other"
    path.unlink(missing_ok=True)
    other.write_text("kept")
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(other)}[
        kind
    ]()
    with pytest.raises(RunError, match=r"\.lock"):
        run.lock()
    assert other.read_text() == "kept"


def git(folder: Path, *arguments: str) -> str:
    """Run git as somebody who has a name; return what it printed."""
    me = ("-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *me, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def commit_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`commit_package("lib/site-packages")`: a repository that tracks a copy of the package there.

    The module takes itself for that copy's. Returns the package's folder.
    """
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where a hook runs the tests
        monkeypatch.delenv(name, raising=False)

    def make(place: str) -> Path:
        package = tmp_path / "project" / place / "tser_cli"
        source = Path(folder.__file__)
        module = package / source.relative_to(source.parents[2])
        module.parent.mkdir(parents=True)
        shutil.copy(source, module)
        git(tmp_path, "init", "-q", "project")
        git(tmp_path / "project", "add", ".")
        git(tmp_path / "project", "commit", "-q", "-m", "all of it")
        monkeypatch.setattr(folder, "__file__", str(module))
        return package

    return make


def test_a_package_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "PACKAGES", ("torch", "no-such-package-anywhere"))
    packages = environment(seed=0)["packages"]
    assert packages == {"torch": version("torch"), "no-such-package-anywhere": "not installed"}


def test_the_git_state_is_that_of_the_package_s_own_repository(commit_package: Any) -> None:
    package = commit_package(".")
    head = git(package, "rev-parse", "HEAD")
    assert folder._git_state() == {"commit": head, "changed": False}
    (package / "another.py").write_text("")
    assert folder._git_state() == {"commit": head, "changed": True}


@pytest.mark.parametrize("place", ["venv/lib/python3.11/site-packages", "site-packages"])
def test_no_git_state_is_taken_from_a_repository_round_an_installed_package(
    commit_package: Any, place: str
) -> None:
    package = commit_package(place)
    assert git(package, "rev-parse", "HEAD")  # git itself would find that repository
    assert folder._git_state() == {}


def test_no_git_state_without_a_repository_or_without_git(
    commit_package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = commit_package(".")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert folder._git_state() == {}
    shutil.rmtree(package.parent / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(package.parent.parent))
    assert folder._git_state() == {}


def test_leftovers_are_removed_but_folders(run: Run) -> None:
    (run.folder / ".x.part").mkdir()
    (run.folder / "figures").mkdir()
    (run.folder / "figures" / ".y.12.part").write_text("half")
    run.remove_leftovers()
    assert (run.folder / ".x.part").is_dir()
    assert list((run.folder / "figures").iterdir()) == []


@pytest.mark.parametrize("damage", ["[", None])
def test_a_status_that_was_damaged_meanwhile_is_written_whole(run: Run, damage: str | None) -> None:
    before = run.status()
    for name in ("status.json", "environment.json"):
        (run.folder / name).unlink()
        if damage:
            (run.folder / name).write_text(damage)
    run.update_status(epoch=3)
    run.update_environment(device="cpu")
    told = run.status()
    assert {key: told[key] for key in ("kind", "started", "state")} == {
        key: before[key] for key in ("kind", "started", "state")
    }
    assert told["epoch"] == 3
    assert run.environment()["python"] == platform.python_version()


def test_nothing_is_written_where_the_folder_became_a_link(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with run.lock():
        run.folder.rename(tmp_path / "moved")
        run.folder.symlink_to(outside)
        for write in (run.update_status, run.update_environment, run.check_place):
            with pytest.raises(RunError, match="was replaced by a link to "):
                write()
    assert list(outside.iterdir()) == []
    # one that was a link when it was locked may stay one
    with run.lock():
        run.update_status(state="running")
    assert (outside / "status.json").exists()
