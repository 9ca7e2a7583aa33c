"""The `tser` command: its subcommands, and what happens to errors."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer

from tser_cli import __version__
from tser_cli.cli import (
    ablate,
    audit,
    distill,
    energy,
    evaluate,
    export,
    methods,
    predict,
    quantize,
    train_teacher,
)
from tser_cli.cli.surroundings import (
    check_arguments,
    check_environment,
    forget_odd_width,
    wait_briefly,
)
from tser_cli.cli.terminal import guarded, tell
from tser_cli.errors import Interrupted, TserError

app = typer.Typer(
    name="tser",
    help="Distil a trained ANN into a spiking network (SNN) and measure what came out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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


app.command("train-teacher")(train_teacher.train_teacher)
app.command("distill")(distill.distill)
app.command("evaluate")(evaluate.evaluate)
app.command("energy")(energy.energy)
app.command("audit")(audit.audit)
app.command("ablate")(ablate.ablate)
app.command("export")(export.export)
app.command("predict")(predict.predict)
app.command("quantize")(quantize.quantize)
app.command("methods")(methods.methods)


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
            tell(f"error: {error}")
            sys.exit(error.exit_code)
        except Interrupted as stop:
            tell(f"{stop}; the state is saved. Repeat the command and it goes on")
            sys.exit(stop.exit_code)
        except KeyboardInterrupt:
            tell("interrupted")
            sys.exit(130)


class _Told(logging.Handler):
    """Write the package's warnings as tser's other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(f"warning: {record.getMessage()}")


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
