"""What a shell offers when Tab is pressed, and plug-ins, which add to it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from tser_cli.base.errors import TserError


def load_plugins(value: list[str] | None) -> list[str] | None:
    # before the other options are looked at, so that they may name what plug-ins add
    from tser_cli.settings import plugins

    plugins.add_entry_points()
    plugins.load(plugins.asked_for(value))
    return value


def names_in(table: Mapping[str, Any]) -> Callable[[typer.Context, str], list[str]]:
    """Return a completion of the names in a registry, those of plug-ins on the line among them."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        from tser_cli.settings import plugins

        with suppress(TserError):
            plugins.add_entry_points()
            plugins.load(plugins.asked_for(context.params.get("plugin")))
        return [name for name in table if name.startswith(incomplete)]

    return complete


# What a shell may be given to put into the user's command line: nothing that it would act on.
PLAIN = re.compile(r"[\w.+=-]+", re.ASCII)


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of runs that begin so, and `latest`."""
    from tser_cli.engine.runs import find

    runs_dir = Path(context.params.get("runs_dir") or os.environ.get("TSER_RUNS_DIR") or "runs")
    names = [find.LATEST, *(run.name for run in find.run_folders(runs_dir))]
    return [name for name in names if name.startswith(incomplete) and PLAIN.fullmatch(name)]


def complete_recipe(incomplete: str) -> list[str]:
    """Return the packaged recipes that begin so."""
    from tser_cli.settings import recipe

    return [name for name in recipe.available() if name.startswith(incomplete)]
