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
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from tser_cli.base.errors import NOT_HELD, RunError
from tser_cli.base.files import write_error
from tser_cli.base.system import end_with_parent
from tser_cli.engine.runs.stop import StopRequest

POLL_SECONDS = 0.2
TELL_LINES = 3
FINISHED = (0, NOT_HELD)  # the latter where it is over its energy budget


def run(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    stopped: Callable[[], bool],
    here: Path | None = None,
) -> str:
    """Run `tser *arguments` to its end, what it says added to `log`; returns what went wrong.

    "" where nothing did. Once `stopped()`, the process gets SIGTERM, saves its state and ends. Must
    be called in a thread that outlives the process: Linux watches the thread that started it.
    `here`: the folder that it runs in; this process's own where None.
    """
    module = "tser_cli.engine.ablation.cell_process"
    # -P: else a file in the current folder that is called as a package of ours would run
    command = [sys.executable, "-P", "-m", module, str(os.getpid()), *arguments]
    with _open_log(log) as stream:
        process = subprocess.Popen(
            command,
            # nobody is there to answer: a cell that asks must fail, not wait
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=here,
            # what TSER_ variables set stands in the cell's own settings already
            env=with_package(
                {k: v for k, v in environment.items() if not k.startswith("TSER_")}, sys.path
            ),
        )
        code = _wait(process, stopped)
    if code in FINISHED:
        return ""
    # what a library printed may be no UTF-8
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TELL_LINES:]
    return f"exit code {code}: {' / '.join(lines)} (see {log})"


def with_package(environment: Mapping[str, str], path: Sequence[str]) -> dict[str, str]:
    """Return `environment`, with this package's place where `python -P` would not find it.

    That is a checkout which is not installed: it was found beside the script or in the current
    folder, the first entry of `path`.
    """
    place = str(Path(__file__).resolve().parents[3])
    # with -P Python puts no place of its own first in the path
    kept = [
        str(Path(entry).resolve()) for entry in path[0 if sys.flags.safe_path else 1 :] if entry
    ]
    if place in kept:
        return dict(environment)
    before = environment.get("PYTHONPATH", "")
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, [place, before]))}


def _open_log(path: Path) -> BinaryIO:
    # not through a link or into a pipe, which a folder from somebody else may hold
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        # appended: a cell that is resumed keeps what it said before
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | careful, 0o666)
    except OSError as error:
        raise write_error(path, error) from error
    stream = os.fdopen(handle, "ab")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        stream.close()
        raise RunError(f"{path} is no regular file and is left as it is; remove it")
    return stream


def run_in_folder(arguments: Sequence[str], folder: str, log: str, here: str) -> str:
    """`run` as the task of a Ray worker, in its main thread; `log` is a file's name in `folder`.

    It runs in the folder `here`, where plug-ins are found by name, if this machine has it.

    When the task is cancelled (Ray then interrupts that thread), or the worker is asked to end, the
    process is stopped as by `stopped`.
    """
    if not Path(folder).is_dir():
        return (
            f"{socket.gethostname()} has no folder {folder}: the runs folder must be on a path "
            "that all machines share (--runs-dir, --output)"
        )
    with StopRequest(lambda text: None) as stop:
        place = Path(here) if Path(here).is_dir() else None
        return run(arguments, Path(folder) / log, os.environ, lambda: stop.requested, place)


def _wait(process: subprocess.Popen[bytes], stopped: Callable[[], bool]) -> int:
    # a wait that ends by itself now and then, since a request to stop wakes no thread but the main
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
        # as `python -m tser_cli` would run it: its own name stands in sys.argv
        runpy.run_module("tser_cli", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if not isinstance(stop.code, int | None):
            sys.stderr.write(f"{stop.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    # Taking torch's modules apart costs seconds, and far more on busy cores: the run is over.
    # os._exit calls no exit handlers and flushes nothing: both are done by hand
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # before anything heavy is imported: from now on this process can't outlive its parent
    end_with_parent(int(sys.argv.pop(1)))
    run_here()
