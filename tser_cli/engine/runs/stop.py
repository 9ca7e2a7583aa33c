"""Stop on SIGTERM, SIGHUP or Ctrl-C: finish the step, save the state, exit with 128 + signal.

A terminal that closes sends SIGHUP; under nohup that is ignored, and stays so.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from tser_cli.base.errors import Interrupted


class StopRequest:
    """Remember the first signal to stop while entered; a second Ctrl-C quits at once.

    `signal`: the number of the signal, None while none has come. `say`: prints a message.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.signal: int | None = None
        self._say = say
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        # Python lets the main thread alone have handlers: elsewhere there is none to stop the run.
        if threading.current_thread() is threading.main_thread():
            heeded, hangup = [signal.SIGINT, signal.SIGTERM], getattr(signal, "SIGHUP", None)
            if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
                heeded.append(hangup)
            for number in heeded:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.signal = number
        # The handler may interrupt another print, or find the terminal gone: neither ends the run.
        with suppress(OSError, RuntimeError, SystemExit):
            self._say("stopping after this step; Ctrl-C again quits at once without saving")

    @property
    def requested(self) -> bool:
        """Return whether a signal has come."""
        return self.signal is not None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signal is not None:
            raise Interrupted(self.signal)
