"""The `tser` command: its subcommands, and what happens to errors."""

from __future__ import annotations

import sys
from typing import Annotated

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
    try:
        app()
    except TserError as error:
        _tell(f"error: {error}")
        sys.exit(error.exit_code)
    except Interrupted as stop:
        _tell(f"{stop}; the state is saved. Repeat the command and it goes on")
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        _tell("interrupted")
        sys.exit(130)


def _tell(message: str) -> None:
    # Plain text in one piece: no wrapping, so that paths and commands can be copied.
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
