"""The `tser` command: its subcommands, what it is started with, and what happens to errors."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import fields, replace
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tser_cli.base import __version__
from tser_cli.base.errors import ConfigError, Interrupted, TserError, lost_worker, out_of_memory
from tser_cli.cli import terminal
from tser_cli.cli.options import is_there, offered, spread, with_examples
from tser_cli.cli.verbs import VERBS, Verb, load
from tser_cli.settings.options import options_of

EXAMPLES = (
    "tser distill --teacher resnet34 --student resnet18 -T 2",
    "tser evaluate --per-timestep",
    "tser energy report.csv",
)
LONGEST = 2**13  # characters of an argument
# What torchrun gives each process. https://docs.pytorch.org/docs/stable/elastic/run.html
RANKS = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
# How long an idle thread of OpenMP keeps its core while it waits for the others. By default GNU's
# runtime turns 300,000 times (some milliseconds) and Intel's waits 200 ms: on cores that other work
# wants too each part of a computation then takes as long. See docs/performance.md for the figures.
# https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
SPINS, BLOCK_MS = "1000", "1"
SET_BY = "torchrun sets it for each process of a run; unset it, or start with torchrun"

app = typer.Typer(
    name="tser",
    help="Distil a trained ANN into a spiking network (SNN) and measure what came out.",
    cls=with_examples(TyperGroup, EXAMPLES),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tser {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Distil a trained ANN into a spiking network (SNN) and measure what came out."""


def call(verb: Verb, request: Any, as_json: bool) -> None:
    """Run a command with its request, and show the result."""
    # a request that was made in Python hears nothing: the command line shows what happens
    if any(field.name == "progress" for field in fields(request)):
        request = replace(request, progress=terminal.progress())
    result = load(verb.run)(request)
    if result is None:  # done, and said on the way
        return
    if as_json and verb.document is not None:
        load("cli.show:show_json")(verb.document(result))
    else:
        load(verb.show)(result, request)
    # the result is shown even where a bound does not hold: it says by how much
    code = verb.code(result)
    if code:
        raise typer.Exit(code)


def add(verb: Verb) -> None:
    """Offer a command, with the examples of what it takes."""
    json = verb.document is not None
    function = spread(verb.request, lambda request, as_json: call(verb, request, as_json), json)
    taken = offered(verb.request, json)
    left_out = [one for one in options_of(verb.request) if one not in taken]
    gone = {flag for one in left_out for flag in one.option.flags.split()}
    examples = [line for line in verb.examples if not gone & set(line.split())]
    shown = with_examples(TyperCommand, examples)
    app.command(verb.name, cls=shown, rich_help_panel=verb.panel, hidden=verb.hidden)(function)


for _verb in VERBS:
    if is_there(*_verb.needs):
        add(_verb)


def main() -> None:
    """Run the command line; one clear message and an exit code for every foreseen error."""
    handler = _Shown()
    terminal.choose(quiet=False, verbose=False)  # of a command before, in the same process
    with terminal.guarded():
        terminal.LOG.addHandler(handler)
        try:
            prepare_environment(os.environ)
            check_environment(os.environ)
            check_arguments(sys.argv)
            app()
        except TserError as error:  # foreseen; anything else is our fault and shows its traceback
            if terminal.is_verbose():
                terminal.tell(traceback.format_exc())
            terminal.tell(f"error: {error}")
            sys.exit(error.exit_code)
        except (MemoryError, RuntimeError) as error:
            message = out_of_memory(error) or lost_worker(error)
            if not message:
                raise
            terminal.tell(f"error: {message}")
            sys.exit(1)
        except Interrupted as stop:
            terminal.tell(f"{stop}; the state is saved. Repeat the command to resume it")
            sys.exit(stop.exit_code)
        except KeyboardInterrupt:
            terminal.tell("interrupted")
            sys.exit(130)
        finally:
            terminal.LOG.removeHandler(handler)


class _Shown(logging.Handler):
    """Write the package's warnings, and with --verbose more, as tser's other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        terminal.tell(f"{'warning: ' if warns else ''}{record.getMessage()}")


def prepare_environment(environment: MutableMapping[str, str]) -> None:
    """Drop variables that would only disturb, and let threads that wait leave their core soon.

    It must be done before torch or matplotlib is imported.
    """
    # a width that no text fits, or that is none: the terminal itself is asked then
    columns = environment.get("COLUMNS", "")
    fits = re.fullmatch("[0-9]{2,4}", columns) and int(columns) >= terminal.NARROWEST
    if columns and not fits:
        del environment["COLUMNS"]
    # figures are drawn into files, which takes no backend; an unknown one ends in a traceback
    environment.pop("MPLBACKEND", None)
    wait_briefly(environment)


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let threads that wait for others leave their core soon; what the user has set stands."""
    if "OMP_WAIT_POLICY" in environment:
        return
    environment.setdefault("GOMP_SPINCOUNT", SPINS)
    if not any(name.startswith("KMP_") for name in environment):
        environment["KMP_BLOCKTIME"] = BLOCK_MS


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise ConfigError for variables that torch would end in a traceback over."""
    numbers = {name: environment[name] for name in RANKS if environment.get(name)}
    for name, text in numbers.items():
        if not re.fullmatch("[0-9]{1,6}", text):
            raise ConfigError(f"{name}={text}: it must be a whole number. {SET_BY}")
    ranked = "RANK" in numbers or "LOCAL_RANK" in numbers
    if ranked and len(numbers) < len(RANKS):
        missing = ", ".join(name for name in RANKS if name not in numbers)
        raise ConfigError(f"{', '.join(numbers)} is set without {missing}. {SET_BY}")
    if ranked and int(numbers["RANK"]) >= int(numbers["WORLD_SIZE"]):
        raise ConfigError(
            f"RANK={numbers['RANK']} is not below WORLD_SIZE={numbers['WORLD_SIZE']}. {SET_BY}"
        )
    width = environment.get("TERMINAL_WIDTH", "")
    if width and not re.fullmatch("[0-9]{2,4}", width):
        raise ConfigError(f"TERMINAL_WIDTH={width}: it must be a number of columns. Unset it")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an argument too long to be a value, or as other tools call it."""
    if arguments[1:2] == ["train"]:
        raise ConfigError(
            "there is no command train: tser train-teacher trains an ANN, tser distill a spiking "
            "student of it"
        )
    for place, argument in enumerate(arguments[1:], 1):
        if len(argument) > LONGEST:
            raise ConfigError(
                f'argument {place} ("{argument[:40]}...") has {len(argument):,} characters; at '
                f"most {LONGEST:,} are taken. Put long settings into a recipe"
            )
