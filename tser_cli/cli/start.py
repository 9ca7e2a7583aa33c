"""The program's first lines: Ctrl-C ends it in one line, during the imports too."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType


def interrupted(number: int, frame: FrameType | None) -> None:
    """End in one line. Typer would show a box and exit with 1."""
    with suppress(OSError, RuntimeError):  # it may have come in the middle of another message
        print("interrupted", file=sys.stderr, flush=True)
    # Modules catch what is raised while they import others, numpy among them, and go on with half
    # of one: then the process ends here.
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            os._exit(128 + number)
        frame = frame.f_back
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line, whose imports take from tenths of a second to seconds.

    A training handles Ctrl-C itself. A shell's background jobs have it ignored: that stays.
    """
    mine = threading.current_thread() is threading.main_thread()
    heeded = mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, interrupted)
    try:
        from tser_cli.cli.app import main as run

        run()
    finally:
        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
