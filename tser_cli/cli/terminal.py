"""The one place where text reaches the terminal, and how much of it.

What is shown may hold names from anywhere. So nothing in it is markup, control characters are shown
as such, characters that the terminal's encoding lacks are replaced, and a reader that goes away
ends no work. Results go to standard output; progress, messages and errors to standard error.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

from tser_cli.base.errors import OutputError, visible
from tser_cli.base.progress import Progress

NARROWEST = 40  # columns; tables are cut to nothing below
USUAL = 80
LOG = logging.getLogger("tser_cli")
# Of the process, not of a request: warnings and log lines come from places that have none.
_asked = {"quiet": False, "verbose": False}


def choose(quiet: bool, verbose: bool) -> None:
    """Set how much the command that begins writes to standard error."""
    _asked.update(quiet=quiet, verbose=verbose)
    LOG.setLevel(logging.INFO if verbose else logging.NOTSET)


def is_quiet() -> bool:
    """Return whether only results, warnings and errors are shown."""
    return _asked["quiet"]


def is_verbose() -> bool:
    """Return whether the sources of settings are shown too, and the traceback of errors."""
    return _asked["verbose"]


def is_first() -> bool:
    """Return whether this is the process that speaks: torchrun numbers them in RANK."""
    return os.environ.get("RANK", "0") == "0"


def output() -> Console:
    """Return the console of results, which is silent in all processes but the first."""
    return Terminal(quiet=not is_first())


def progress() -> Progress:
    """Return what shows the progress of a training on standard error; warnings alone if quiet."""
    from tser_cli.cli.progress import make_progress

    return make_progress(Terminal(stderr=True), is_quiet())


def show_lines(lines: Iterable[str]) -> None:
    """Write lines to standard output; on a terminal they break between words."""
    out = output()
    for line in lines:
        out.print(wrapped(line, sys.stdout), soft_wrap=True)


def wrapped(text: str, stream: TextIO) -> str:
    """Break lines between words where `stream` is a terminal; words, as paths, stay whole.

    Indented lines are to be copied, and stay as they are.
    """
    if not stream.isatty():
        return text
    try:
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):
        return text
    room = width if width >= NARROWEST else USUAL
    return "\n".join(
        line
        if line.startswith(" ")
        else textwrap.fill(line, room, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )


def tell(message: str) -> None:
    """Write a message to standard error; paths stay whole, so that they can be copied."""
    # not by rich: a message may come from a signal's handler, in the middle of a drawing
    sys.stderr.write(f"{wrapped(visible(message), sys.stderr)}\n")
    sys.stderr.flush()


def note(lines: Iterable[str]) -> None:
    """Write messages that --quiet leaves out; under torchrun the first process alone does."""
    if is_first() and not is_quiet():
        for line in lines:
            tell(line)


class Terminal(Console):
    """A console that takes every text as it stands."""

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)
        if self.width < NARROWEST:  # some pipes and editors say 0 or 1
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
        # what an encoding lacks: "?" in a result, an escape in a message, never an error
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
        # what waits in its buffer would fail again when Python ends, and change the exit code
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if self._must_arrive and not isinstance(error, BrokenPipeError):
            raise OutputError(f"standard output can't be written: {error.strerror}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Guard both standard streams. A stream that is closed (`>&-`) is one that nobody reads."""
    before = sys.stdout, sys.stderr
    out, err = (each or Path(os.devnull).open("w", encoding="utf-8") for each in before)  # noqa: SIM115
    # a result must arrive or be an error; a message that nobody reads ends no work
    sys.stdout = cast("TextIO", Stream(out, must_arrive=True))
    sys.stderr = cast("TextIO", Stream(err, must_arrive=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
