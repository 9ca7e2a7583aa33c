"""`python -m tser_cli.engine.bound PID ...`: `tser ...` in a process that ends when PID does.

Linux ends it, however its parent ended; elsewhere it lives on.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
KILLED = 128 + signal.SIGKILL


def end_with(parent: int) -> None:
    """Let Linux end this process when its parent ends; `parent` is the parent's process id."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # it may have ended before that call
    if os.getppid() != parent:
        os._exit(KILLED)


if __name__ == "__main__":
    end_with(int(sys.argv.pop(1)))
    runpy.run_module("tser_cli", run_name="__main__", alter_sys=True)
