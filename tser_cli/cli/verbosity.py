"""How much a command tells on standard error: with --quiet, as usual, or with --verbose."""

from __future__ import annotations

import logging

LOG = logging.getLogger("tser_cli")
_told = {"quiet": False, "verbose": False}


def choose(quiet: bool, verbose: bool) -> None:
    """Set it for the command that begins."""
    _told.update(quiet=quiet, verbose=verbose)
    LOG.setLevel(logging.INFO if verbose else logging.NOTSET)


def is_quiet() -> bool:
    """Return whether only results, warnings and errors are to be shown."""
    return _told["quiet"]


def is_verbose() -> bool:
    """Return whether where things come from is to be told, and the traceback of errors too."""
    return _told["verbose"]
