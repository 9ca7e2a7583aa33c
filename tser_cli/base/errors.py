"""What can go wrong, in words for the user; and text from outside, made fit to be shown.

Every message says what is wrong, where, and what to do about it. The command line prints it in
one piece and exits with `exit_code`; no other exception is expected to reach a user.
"""

from __future__ import annotations

import difflib
import functools
import html
import logging
import re
from collections.abc import Iterable

# The exit code of a command that did its work and found that a check, or a bound that was asked
# for, does not hold: no error, but scripts should notice.
NOT_HELD = 4


class TserError(Exception):
    """Base of all errors with a message for the user. `exit_code` is the process's."""

    exit_code = 2


class ConfigError(TserError):
    """A recipe, a `TSER_*` variable or a flag that can't be used."""


class DataError(TserError):
    """A data set that is missing, damaged or does not fit."""


class CheckpointError(TserError):
    """A model file or checkpoint that is missing, damaged or does not fit."""


class RunError(TserError):
    """A run folder that is missing, unfinished, in use or can't be written."""


class DiskFullError(RunError):
    """A file that can't be written for lack of space."""

    exit_code = 1


class OutputError(TserError):
    """Standard output that can't be written: the disk behind it is full."""

    exit_code = 1


class DamagedFileError(TserError):
    """A file of ours that can't be read, or does not hold what it must."""


class DamagedError(TserError):
    """Every resumable checkpoint of a run is damaged."""

    exit_code = 3


class ExportError(TserError):
    """A network that a format or a target can't hold, or an export that fails its check."""


class TrainingError(TserError):
    """Training can't continue: a loss that is not finite, a full disk, a lost worker."""

    exit_code = 1


class NonFiniteError(TrainingError):
    """A loss or gradient is NaN or infinite; resuming from the last checkpoint would repeat it."""


class Interrupted(Exception):  # noqa: N818  (a request to stop, not a fault)
    """A signal asked the run to stop; its state has been saved. `exit_code` is 128 + signal."""

    def __init__(self, signal_number: int, message: str = "") -> None:
        super().__init__(message or f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


ALLOCATION = re.compile(r"allocate ([\d.,]+ ?(?:[KMGTP]i?B|bytes))", re.IGNORECASE)
NO_MEMORY = re.compile("can't allocate memory|out of memory|bad_alloc|ALLOC_FAILED")


def out_of_memory(error: BaseException) -> str:
    """Return the message for an error of memory that ran out; "" for any other error."""
    text = error_line(error)
    if not isinstance(error, MemoryError) and not NO_MEMORY.search(text):
        return ""
    asked = ALLOCATION.search(text)
    return (
        f"out of memory{f': {asked[1]} more were asked for' if asked else ''}. Lower --batch-size "
        "(to measure a run: training.eval_batch_size), -T or the size of the images"
    )


def lost_worker(error: BaseException) -> str:
    """Return the message for a data loader's worker that was killed; "" for any other error.

    The system kills one for lack of memory. torch says so from a signal handler too, and so at any
    point of the main process, even while an error is on its way.
    """
    lost = "DataLoader worker (pid" in str(error)
    return f"a data loader worker was lost: {first_line(error)}" if lost else ""


def error_line(error: BaseException) -> str:
    """Return an error's type and first line."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return what an error says first, "" for nothing; one from elsewhere may fail to say any."""
    try:
        return next(iter(str(error).strip().splitlines()), "")
    except Exception:
        return ""


def reason(error: BaseException) -> str:
    """Return why a file can't be used: the system's words where there are any, without the path."""
    return str(getattr(error, "strerror", None) or error)


MOST_REPORTED = 20  # problems of settings: more of them help nobody


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, the same one only once: runs are looked for many times in one command."""
    logging.getLogger("tser_cli").warning("%s", message)


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return the message for a `name` that is not among the `choices` of its `kind`."""
    known = sorted(choices)
    return f'unknown {kind} "{name}"{nearest(name, known)}. Known: {", ".join(known)}'


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint such as ` (did you mean "tser"?)`, or "" where nothing is near `word`."""
    close = closest(word, choices)
    return f' (did you mean "{close}"?)' if close else ""


def closest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is nearest to `word`, None where none is near."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)), None)


KEPT = "\n\t\u00a0"
LINE = 4200  # characters; a path may have 4096
LABEL = 120


def visible(text: str) -> str:
    r"""Return `text` with what can't be seen written as an escape: `\x1b`, `\u202e`, `\udcff`.

    Line breaks, tabs and fixed spaces stay. A line of more than 4200 characters is cut.
    """
    # Names of files and classes come from anywhere: an escape sequence in one could rewrite what
    # the terminal shows, and half a surrogate pair can't be printed at all.
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() or c in KEPT else c.encode("unicode_escape").decode("ascii")
            for c in text
        )
    if len(text) <= LINE:
        return text
    return "\n".join(cut(line, LINE) for line in text.split("\n"))


def cut(text: str, length: int) -> str:
    """Return `text`, or its first `length` characters and how many are left out."""
    if len(text) <= length:
        return text
    return f"{text[:length]}... ({len(text) - length:,} more characters)"


def one_line(text: str, length: int = LABEL) -> str:
    r"""Return `text` on one line of about `length`: line breaks and tabs are escapes, too."""
    shown = visible(text[:length].replace("\n", "\\n").replace("\t", "\\t"))
    if len(text) > length:
        return f"{shown[:length]}... ({len(text) - length:,} more characters)"
    return shown if len(shown) <= length else f"{shown[:length]}..."


# what Markdown reads as markup within a line; a _ within a word is none
MARKUP = re.compile(r"[`*\[\]|~\\$]|(?<!\w)_|_(?!\w)")


def escaped(text: str) -> str:
    """Return `visible(text)` as HTML and Markdown show it: markup of either is an entity."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", html.escape(visible(text)))


def drawable(text: str) -> str:
    r"""Return `text` as matplotlib shall draw it: on one line, cut, and no `$` opens a formula."""
    return one_line(text).replace("$", r"\$")
