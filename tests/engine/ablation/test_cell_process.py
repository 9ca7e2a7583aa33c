"""`tser` in a process of its own: its exit code, and its end with the process that began it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tser_cli
from tser_cli.base.errors import RunError
from tser_cli.engine.ablation import cell_process


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["--version"], 0, "tser ", ""),
        (["energy", "--nonsense"], 2, "", "No such option"),
    ],
)
def test_a_cell_s_process_ends_with_the_code_of_tser(
    tmp_path: Path, arguments: list[str], code: int, out: str, err: str
) -> None:
    module = "tser_cli.engine.ablation.cell_process"
    command = [sys.executable, "-m", module, str(os.getpid()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout[:5]) == (code, out)
    assert err in done.stderr


def test_what_is_left_to_do_at_exit_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import atexit, runpy, sys\n"
        "from tser_cli.engine.ablation import cell_process as bound\n"
        "def tser(*rest, **options):\n"
        "    atexit.register(print, 'at exit')\n"
        "    print('half a line', end=' ')\n"
        "    {}\n"
        "bound.runpy.run_module = tser\n"
        "bound.run_here()\n"
    )
    for ending, code in (("sys.exit(5)", 5), ("raise ValueError", 1), ("sys.exit('why')", 1)):
        done = subprocess.run(
            [sys.executable, "-c", program.format(ending)], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (code, "half a line at exit\n")
        assert ("ValueError" in done.stderr, "why" in done.stderr) == (
            "Value" in ending,
            "why" in ending,
        )


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends it")
def test_a_process_whose_parent_ended_before_it_began_ends_too() -> None:
    program = "from tser_cli.base.system import end_with_parent as e\ne({})\nprint('alive')"
    for parent, ended in ((1, (137, "")), (os.getpid(), (0, "alive\n"))):
        command = [sys.executable, "-c", program.format(parent)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == ended


def test_a_file_in_the_current_folder_does_not_stand_in_for_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "typer.py").write_text("open('ran', 'w')\nraise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = cell_process.run(["--version"], tmp_path / "cell.log", environment, lambda: False)
    assert (said, (tmp_path / "ran").exists()) == ("", False)
    assert (tmp_path / "cell.log").read_text().startswith("tser ")


def test_a_checkout_is_added_where_python_would_not_find_it() -> None:
    place = str(Path(tser_cli.__file__).resolve().parents[1])
    installed = cell_process.with_package({"A": "1"}, ["", "/lib", place])
    assert installed == {"A": "1"}
    assert cell_process.with_package({}, [place, "/lib"]) == {"PYTHONPATH": place}
    added = cell_process.with_package({"PYTHONPATH": "/mine"}, ["", "/lib"])
    assert added == {"PYTHONPATH": os.pathsep.join([place, "/mine"])}


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
def test_a_log_that_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    other, log = tmp_path / "other", tmp_path / "cell.log"
    other.write_text("kept")
    log.symlink_to(other)
    with pytest.raises(RunError, match=r"cell\.log"):
        cell_process.run(["--version"], log, {}, lambda: False)
    assert other.read_text() == "kept"
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(RunError, match=r"cell\.log"):
        cell_process.run(["--version"], log, {}, lambda: False)


@pytest.mark.parametrize(("code", "fine"), [(0, True), (4, True), (1, False), (2, False)])
def test_a_cell_over_its_energy_budget_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fine: bool
) -> None:
    monkeypatch.setattr(cell_process, "_wait", lambda process, stopped: process.wait() and code)
    monkeypatch.setattr(sys, "executable", "false")
    said = cell_process.run([], tmp_path / "cell.log", {}, lambda: False)
    assert (said == "") is fine
    assert fine or said.startswith(f"exit code {code}: ")
