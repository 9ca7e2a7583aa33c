"""Text from outside, made fit to be shown: on a terminal, in a figure."""

from __future__ import annotations

KEPT = "\n\t\u00a0"
LINE = 4200  # characters; a path may have 4096
LABEL = 120


def visible(text: str) -> str:
    r"""Return `text` with what can't be seen written as an escape: `\x1b`, `\u202e`, `\udcff`.

    Line breaks, tabs and fixed spaces stay. A line of more than 4200 characters is cut.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c in KEPT else _escape(c) for c in text)
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


def drawable(text: str) -> str:
    r"""Return `text` as matplotlib shall draw it: on one line, cut, and no `$` opens a formula."""
    return one_line(text).replace("$", r"\$")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
