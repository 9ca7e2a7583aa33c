"""`tser` in a process of its own: its exit code, and its end with the process that began it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["--version"], 0, "tser ", ""),
        (["energy", "--nonsense"], 2, "", "No such option"),
        (["ablate", "no/such/recipe"], 2, "", 'error: no recipe "no/such/recipe"'),
    ],
)
def test_a_cell_s_process_ends_with_the_code_of_tser(
    tmp_path: Path, arguments: list[str], code: int, out: str, err: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "tser_cli.engine.ablation.cell_process",
        str(os.getpid()),
        *arguments,
    ]
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
    program = (
        "from tser_cli.operating_system import end_with_parent\nend_with_parent({})\nprint('alive')"
    )
    orphan = subprocess.run(
        [sys.executable, "-c", program.format(1)], capture_output=True, text=True
    )
    assert (orphan.returncode, orphan.stdout) == (137, "")
    child = subprocess.run(
        [sys.executable, "-c", program.format(os.getpid())], capture_output=True, text=True
    )
    assert (child.returncode, child.stdout) == (0, "alive\n")
