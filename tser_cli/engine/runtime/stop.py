"""SIGTERM and Ctrl-C as a polite request: finish the step, save, exit 143 or 130."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

from tser_cli.errors import Interrupted


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is kept in `signal`; a second Ctrl-C quits."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.signal: int | None = None
        self._tell = tell
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.signal = number
        # told in the middle of anything: of another message, or with the terminal's end gone
        with suppress(OSError, RuntimeError, SystemExit):
            self._tell("stopping after this step; Ctrl-C again quits at once without saving")

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def check(self) -> None:
        """Raise Interrupted where a signal has come."""
        if self.signal is not None:
            raise Interrupted(self.signal)
