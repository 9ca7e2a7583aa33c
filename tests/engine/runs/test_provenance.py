"""What a run was made with, and that a repository round an installed package is not its source."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tser_cli.base.version import __version__
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.folder import environment


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


def test_versions_machine_command_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tser", "distill"])
    found = environment(seed=7)
    assert (found["tser"], found["command"], found["seed"]) == (
        __version__,
        ["tser", "distill"],
        7,
    )
    packages = found["packages"]
    assert packages["torch"] == version("torch")
    assert set(packages) >= {"torchvision", "spikingjelly", "accelerate", "numpy"}
    assert {"python", "platform", "processor", "cpu_count", "git"} <= set(found)


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
