"""The lock of a run folder, between real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tser_cli.base.errors import RunError
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.folder import Run
from tser_cli.settings.config import Config

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
def run(tmp_path: Path, make_config: Callable[..., Config]) -> Run:
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
    began = time.monotonic()
    with pytest.raises(RunError) as error:
        run.lock()
    assert time.monotonic() - began < 1.0
    message = f"in use by process {holder.pid} on {socket.gethostname()}"
    assert message in str(error.value)
    assert str(run.folder) in str(error.value)


def test_a_killed_holder_s_lock_is_free_at_once(run: Run, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run.lock():
        pass


def test_a_lock_is_free_again_after_its_block(run: Run) -> None:
    held = run.lock()
    with held, pytest.raises(RunError, match="in use by process"):
        run.lock()
    with run.lock():
        pass
    del held  # until here it was the block's end that freed the lock, not the last reference


def test_a_lock_is_free_again_after_an_error(run: Run) -> None:
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock():
        pass


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


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't be written"):
        Run(tmp_path / "file" / "run").lock()
