"""What a command is started with, checked before any work: environment, arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence

from tser_cli.base.errors import ConfigError
from tser_cli.cli.terminal import NARROWEST

LONGEST = 2**13  # characters of an argument
# What torchrun gives each process. https://docs.pytorch.org/docs/stable/elastic/run.html
RANKS = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
# How long an idle thread of OpenMP keeps its core while it waits for the others. By default GNU's
# runtime turns 300,000 times (some milliseconds) and Intel's waits 200 ms: on cores that other work
# wants too each part of a computation then takes as long. See docs/performance.md for the figures.
# https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
SPINS, BLOCK_MS = "1000", "1"
MEANT_BY = "torchrun sets it for each process of a run; unset it, or start with torchrun"


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an argument that nothing takes: one too long to be a value."""
    for place, argument in enumerate(arguments[1:], 1):
        if len(argument) > LONGEST:
            raise ConfigError(
                f'argument {place} ("{argument[:40]}...") has {len(argument):,} characters; at '
                f"most {LONGEST:,} are taken. Put long settings into a recipe"
            )


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise ConfigError for variables that torch or matplotlib would end in a traceback over."""
    numbers = {name: environment[name] for name in RANKS if environment.get(name)}
    for name, text in numbers.items():
        if not re.fullmatch("[0-9]{1,6}", text):
            raise ConfigError(f"{name}={text}: it must be a whole number. {MEANT_BY}")
    ranked = "RANK" in numbers or "LOCAL_RANK" in numbers
    if ranked and len(numbers) < len(RANKS):
        missing = ", ".join(name for name in RANKS if name not in numbers)
        raise ConfigError(f"{', '.join(numbers)} is set without {missing}. {MEANT_BY}")
    if ranked and int(numbers["RANK"]) >= int(numbers["WORLD_SIZE"]):
        raise ConfigError(
            f"RANK={numbers['RANK']} is not below WORLD_SIZE={numbers['WORLD_SIZE']}. {MEANT_BY}"
        )
    width = environment.get("TERMINAL_WIDTH", "")
    if width and not re.fullmatch("[0-9]{2,4}", width):
        raise ConfigError(f"TERMINAL_WIDTH={width}: it must be a number of columns. Unset it")
    _check_backend(environment.get("MPLBACKEND", ""))


def forget_odd_width(environment: MutableMapping[str, str]) -> None:
    """Drop a COLUMNS that no text fits, or that is no width: the terminal itself is asked then."""
    columns = environment.get("COLUMNS", "")
    if columns and not (re.fullmatch("[0-9]{2,4}", columns) and int(columns) >= NARROWEST):
        del environment["COLUMNS"]


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let threads that wait for others leave their core soon; say it before torch is imported.

    What the user has set about waiting stands.
    """
    if "OMP_WAIT_POLICY" in environment:
        return
    environment.setdefault("GOMP_SPINCOUNT", SPINS)
    if not any(name.startswith("KMP_") for name in environment):
        environment["KMP_BLOCKTIME"] = BLOCK_MS


def _check_backend(name: str) -> None:
    # The figures of tser need none: it is known here without importing matplotlib.
    if name and not name.startswith("module://") and name.lower() not in BACKENDS:
        raise ConfigError(
            f"MPLBACKEND={name} is no backend of matplotlib. Unset it, or use one of "
            f"{', '.join(sorted(BACKENDS))}"
        )


# https://matplotlib.org/stable/users/explain/figure/backends.html
BACKENDS = {
    *("agg", "cairo", "pdf", "pgf", "ps", "svg", "template", "gtk3agg", "gtk3cairo", "gtk4agg"),
    *("gtk4cairo", "macosx", "nbagg", "notebook", "qtagg", "qtcairo", "qt5agg", "qt5cairo"),
    *("tkagg", "tkcairo", "webagg", "wx", "wxagg", "wxcairo", "ipympl", "widget", "inline"),
}
