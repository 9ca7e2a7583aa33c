"""Runs `python -m tser_cli` many times over, importing it only once, and breaks it on request.

A test starts this script and writes one JSON request a line; it answers with one line each.
{"argv": [...], ...} forks a process that runs the real command line in a session of its own, and
answers with its pid; {"wait": pid, "seconds": s} answers with its exit code (negative: a signal),
or null where it still runs. With "launcher": true the run is the child of a process that waits for
it. What is to go wrong inside is said in "faults", a list of dicts: see `sabotage.py`.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sabotage import install

from tser_cli.base.system import end_with_parent


def become(request: dict[str, Any]) -> None:
    """Turn this forked process into `python -m tser_cli` with the request's arguments."""
    os.setsid()
    end_with_parent()
    for handle, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        os.dup2(os.open(name, flags, 0o666), handle)
    # a shell lets what it starts in the background ignore Ctrl-C, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.environ.update(request.get("env", {}))
    os.chdir(request["cwd"])
    install(request.get("faults", []))
    if request.get("launcher") and (child := os.fork()):
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.argv = ["tser", *request["argv"]]
    leave(outcome(lambda: runpy.run_module("tser_cli", run_name="__main__", alter_sys=True)))


def outcome(act: Callable[[], Any]) -> int:
    """The exit code that Python would give."""
    try:
        act()
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(code: int) -> None:
    """Exit as Python does, but for the seconds that it takes to clear up all modules."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def waited(pid: int, seconds: float) -> int | None:
    """The exit code of a forked process; None where it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


def serve() -> dict[str, Any] | None:
    """Answer requests until their end; the request to become, in a process forked for it."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer: Any = waited(request["wait"], request["seconds"])
        else:
            answer = os.fork()
            if answer == 0:
                return request  # type: ignore[no-any-return]
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
    return None


def load() -> None:
    """Import all that a run imports. No thread may live, since it would not survive a fork."""
    import accelerate.optimizer  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch._inductor
    import torch.nn.parallel

    from tser_cli.cli import app  # noqa: F401
    from tser_cli.data import builtin  # noqa: F401
    from tser_cli.engine.commands import evaluate, train  # noqa: F401
    from tser_cli.models import resnet  # noqa: F401
    from tser_cli.settings import config

    config.keys()  # of all methods: their files are loaded
    torch.set_num_threads(1)
    assert len(list(Path("/proc/self/task").iterdir())) == 1


if __name__ == "__main__":
    load()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    asked = serve()
    if asked is not None:
        become(asked)
    os._exit(0)
