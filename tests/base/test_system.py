"""Cores, and processes that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tser_cli.base import system
from tser_cli.base.system import KILLED, cores, end_with_parent

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
# A parent that starts a child, tells its process id, and ends once it is told to.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.readline()
"""
CHILD = """
import time
from tser_cli.base.system import end_with_parent
{call}
print("ready", flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    """Whether a process lives; one that nobody has waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cores() == 3
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


@on_linux
@pytest.mark.parametrize(
    ("call", "end"),
    [
        ("end_with_parent()", "killed"),
        ("import os; end_with_parent(os.getppid())", "by itself"),
    ],
)
def test_a_process_ends_with_its_parent(call: str, end: str) -> None:
    command = [sys.executable, "-c", PARENT, CHILD.format(call=call)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        if end == "killed":
            parent.kill()
        else:
            parent.stdin.write("\n")
            parent.stdin.flush()
    try:
        end_of_test = time.monotonic() + 60  # the signal of a parent's end may take a moment
        while is_running(child) and time.monotonic() < end_of_test:
            time.sleep(0.01)
        assert not is_running(child)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


@on_linux
def test_a_process_whose_parent_has_ended_before_ends_at_once() -> None:
    program = CHILD.format(call="import os; end_with_parent(os.getpid())")  # never its parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert (done.returncode, done.stdout) == (KILLED, b"")
    assert KILLED == 137


def test_elsewhere_than_on_linux_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: object) -> None:
        raise AssertionError("no C library is asked")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(system.ctypes, "CDLL", refused)
    end_with_parent(parent=1)


def test_what_a_call_lacks_is_told_before_it_is_made() -> None:
    def build(depth: int, *, wide: bool = False) -> None:
        raise AssertionError("it is not called")

    assert system.call_fault(build, 4, wide=True) == ""
    assert system.call_fault(build) == "missing a required argument: 'depth'"
    assert system.call_fault(build, depth=4, high=1) == "got an unexpected keyword argument 'high'"
    assert system.call_fault(dict, 1, 2, 3) == ""  # in C, without a signature
