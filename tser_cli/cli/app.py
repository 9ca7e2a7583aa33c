"""The `tser` command: its subcommands, and what happens to errors."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from tser_cli.base.errors import Interrupted, TserError
from tser_cli.base.version import __version__
from tser_cli.cli import (
    ablate,
    audit,
    compare,
    distill,
    doctor,
    energy,
    evaluate,
    export,
    listing,
    predict,
    quantize,
    report,
    runs,
    train_teacher,
    verbosity,
)
from tser_cli.cli.grouped import grouped
from tser_cli.cli.help_text import with_examples
from tser_cli.cli.surroundings import (
    check_arguments,
    check_environment,
    forget_odd_width,
    wait_briefly,
)
from tser_cli.cli.terminal import guarded, tell

TRAIN, MEASURE, USE, ABOUT = "Train", "Measure", "Use", "About"
EXAMPLES = (
    "tser distill --teacher resnet34 --student resnet18 -T 2",
    "tser evaluate --per-timestep",
    "tser energy report.csv",
)


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


# name, function, panel of tser --help, examples
COMMANDS: tuple[tuple[str, Callable[..., None], str, Sequence[str]], ...] = (
    ("distill", distill.distill, TRAIN, distill.EXAMPLES),
    ("train-teacher", train_teacher.train_teacher, TRAIN, train_teacher.EXAMPLES),
    ("ablate", ablate.ablate, TRAIN, ablate.EXAMPLES),
    ("evaluate", evaluate.evaluate, MEASURE, evaluate.EXAMPLES),
    ("energy", energy.energy, MEASURE, energy.EXAMPLES),
    ("audit", audit.audit, MEASURE, audit.EXAMPLES),
    ("compare", compare.compare, MEASURE, compare.EXAMPLES),
    ("report", report.report, MEASURE, report.EXAMPLES),
    ("predict", predict.predict, USE, predict.EXAMPLES),
    ("quantize", quantize.quantize, USE, quantize.EXAMPLES),
    ("export", export.export, USE, export.EXAMPLES),
    ("runs", runs.runs, ABOUT, runs.EXAMPLES),
    ("list", listing.listing, ABOUT, listing.EXAMPLES),
    ("doctor", doctor.doctor, ABOUT, doctor.EXAMPLES),
    ("methods", listing.methods, ABOUT, listing.METHODS_EXAMPLES),
)
for name, function, panel, lines in COMMANDS:
    shown = with_examples(TyperCommand, lines)
    app.command(name, cls=shown, rich_help_panel=panel)(grouped(function))


def main() -> None:
    """Run the command line; one clear message and an exit code for every foreseen error."""
    with guarded(), _warnings_told(), _one_line_for_ctrl_c():
        try:
            forget_odd_width(os.environ)
            wait_briefly(os.environ)
            check_environment(os.environ)
            check_arguments(sys.argv)
            app()
        except TserError as error:
            if verbosity.is_verbose():
                tell(traceback.format_exc())
            tell(f"error: {error}")
            sys.exit(error.exit_code)
        except Interrupted as stop:
            tell(f"{stop}; the state is saved. Repeat the command and it goes on")
            sys.exit(stop.exit_code)
        except KeyboardInterrupt:
            tell("interrupted")
            sys.exit(130)


class _Told(logging.Handler):
    """Write the package's warnings, and with --verbose more, as tser's other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        tell(f"{'warning: ' if warns else ''}{record.getMessage()}")


@contextmanager
def _warnings_told() -> Iterator[None]:
    log, handler = logging.getLogger("tser_cli"), _Told()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def _one_line_for_ctrl_c() -> Iterator[None]:
    # Before and after a training, which handles it itself. Typer would show a box and exit with 1.
    # A shell's background jobs have it ignored: that stays.
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError, RuntimeError):  # it may have come in the middle of another message
        tell("interrupted")
    raise SystemExit(128 + number)
