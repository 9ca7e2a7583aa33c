"""The one place where text reaches the terminal.

What is shown may hold names from anywhere. So nothing in it is markup, control characters are shown
as such, characters that the terminal's encoding lacks are replaced, and a reader that goes away
ends no work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from tser_cli.base.errors import OutputError, visible

NARROWEST = 40  # columns; tables are cut to nothing below
USUAL = 80


class Terminal(Console):
    """A console that takes every text as it stands."""

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)
        if self.width < NARROWEST:
            self.width = USUAL

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` as rich draws it, with control characters made visible."""
        return super().render_str(visible(text), **options)


class Stream:
    """A standard stream whose reader may go away: what is written then is dropped.

    Raises OutputError where `must_arrive` and the text can't be written for another reason: a full
    disk.
    """

    def __init__(self, stream: TextIO, must_arrive: bool) -> None:
        self._stream, self._must_arrive = stream, must_arrive
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace" if must_arrive else "backslashreplace")

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _point_nowhere(self._stream)
        if self._must_arrive and not isinstance(error, BrokenPipeError):
            raise OutputError(f"standard output can't be written: {error.strerror}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _point_nowhere(stream: TextIO) -> None:
    # what waits in the stream's buffer would fail again when Python ends, and change the exit code
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def guarded() -> Iterator[None]:
    """Guard both standard streams. A stream that is closed (`>&-`) is one that nobody reads."""
    before = sys.stdout, sys.stderr
    sys.stdout = _guard(before[0], must_arrive=True)
    sys.stderr = _guard(before[1], must_arrive=False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _guard(stream: TextIO | None, must_arrive: bool) -> Any:
    return Stream(stream or open(os.devnull, "w", encoding="utf-8"), must_arrive)  # noqa: PTH123


def tell(message: str) -> None:
    """Write a message to standard error in one piece: no wrapping, so that paths can be copied."""
    sys.stderr.write(f"{visible(message)}\n")
    sys.stderr.flush()
