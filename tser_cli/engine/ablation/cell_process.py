"""Run `tser` in a process of its own that ends when the process that started it does.

Linux ends it, however its parent ended; elsewhere it lives on. Nothing heavy is imported here: a
Ray worker loads this file, and leaves torch to the process that it starts.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.operating_system import end_with_parent

POLL_SECONDS = 0.2
TELL_LINES = 3


def run(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    stopped: Callable[[], bool],
) -> str:
    """Run `tser *arguments` to its end, what it says added to `log`; returns what went wrong.

    "" where nothing did. Once `stopped()`, the process gets SIGTERM, saves its state and ends. Must
    be called in a thread that outlives the process: Linux watches the thread that started it.
    """
    command = [
        sys.executable,
        "-m",
        "tser_cli.engine.ablation.cell_process",
        str(os.getpid()),
        *arguments,
    ]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={k: v for k, v in environment.items() if not k.startswith("TSER_")},
        )
        code = _wait(process, stopped)
    if code == 0:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TELL_LINES:]
    return f"exit code {code}: {' / '.join(lines)} (see {log})"


def run_in_folder(arguments: Sequence[str], folder: str, log: str) -> str:
    """`run` as the task of a Ray worker, in its main thread; `log` is a file's name in `folder`.

    When the task is cancelled (Ray then interrupts that thread), or the worker is asked to end, the
    process is stopped as by `stopped`.
    """
    if not Path(folder).is_dir():
        return (
            f"{socket.gethostname()} has no folder {folder}: the runs folder must be on a path "
            "that all machines share (--runs-dir, --output)"
        )
    with StopRequest(lambda text: None) as stop:
        return run(arguments, Path(folder) / log, os.environ, lambda: stop.requested)


def _wait(process: subprocess.Popen[bytes], stopped: Callable[[], bool]) -> int:
    asked = False
    while True:
        try:
            return process.wait(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if stopped() and not asked:
                process.send_signal(signal.SIGTERM)
                asked = True


def run_here() -> NoReturn:
    """Run `tser` with this process's arguments, then end it with tser's exit code."""
    try:
        runpy.run_module("tser_cli", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = _exit_code(stop)
    except BaseException:
        traceback.print_exc()
        code = 1
    # Taking torch's modules apart costs seconds, and far more on busy cores: the run is over.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    sys.stderr.write(f"{stop.code}\n")
    return 1


if __name__ == "__main__":
    end_with_parent(int(sys.argv.pop(1)))
    run_here()
