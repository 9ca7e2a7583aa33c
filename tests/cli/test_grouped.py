"""Groups of options: spread out for typer, gathered for the command."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from tser_cli.cli import verbosity
from tser_cli.cli.app import COMMANDS
from tser_cli.cli.grouped import DATA, PANELS, TRAINING, grouped
from tser_cli.cli.options import option

Epochs = Annotated[int, option(TRAINING, "--epochs", help="how long")]
Folder = Annotated[Path | None, option(DATA, "--folder", help="where")]
Name = Annotated[str, typer.Argument(help="what")]


@dataclass(frozen=True)
class Group:
    """Two options."""

    epochs: Epochs = 3
    folder: Folder = None


Again = Annotated[int, typer.Option("--again", help="how often")]


def command(group: Group, name: Name, again: Again = 1) -> None:
    """Do it."""
    typer.echo(f"{group} {name} {again}")


def test_a_group_becomes_its_options_in_the_order_of_panels() -> None:
    parameters = inspect.signature(grouped(command)).parameters
    assert list(parameters) == ["name", "again", "folder", "epochs", "quiet", "verbose"]
    assert parameters["epochs"].default == 3
    assert parameters["name"].default is inspect.Parameter.empty
    assert grouped(command).__doc__ == "Do it."


def test_the_command_is_given_the_group(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(grouped(command))
    done = CliRunner().invoke(app, ["x", "--folder", str(tmp_path), "--again", "2"])
    assert done.output == f"{Group(3, tmp_path)} x 2\n"
    assert CliRunner().invoke(app, ["--folder", str(tmp_path)]).exit_code == 2


def test_how_much_is_told_is_chosen_for_each_call() -> None:
    call = grouped(command)
    given = {"epochs": 1, "folder": None, "name": "x", "again": 1}
    try:
        call(**given, quiet=True, verbose=False)
        assert (verbosity.is_quiet(), verbosity.is_verbose()) == (True, False)
        assert verbosity.LOG.getEffectiveLevel() > verbosity.logging.INFO
        call(**given, quiet=False, verbose=True)
        assert (verbosity.is_quiet(), verbosity.is_verbose()) == (False, True)
        assert verbosity.LOG.getEffectiveLevel() == verbosity.logging.INFO
    finally:
        verbosity.choose(quiet=False, verbose=False)


@pytest.mark.parametrize(("name", "function"), [entry[:2] for entry in COMMANDS])
def test_every_option_of_a_command_is_there_once(name: str, function: object) -> None:
    parameters = inspect.signature(grouped(function)).parameters.values()  # type: ignore[arg-type]
    flags = [flag for p in parameters for flag in flags_of(p)]
    assert len(flags) == len(set(flags)), name
    panels = [p.annotation.__metadata__[0].rich_help_panel for p in parameters]
    assert {panel for panel in panels if panel} <= set(PANELS)


def flags_of(parameter: inspect.Parameter) -> list[str]:
    stated = parameter.annotation.__metadata__[0]
    default = [stated.default] if isinstance(stated.default, str) else []
    return [*default, *(stated.param_decls or ())]
