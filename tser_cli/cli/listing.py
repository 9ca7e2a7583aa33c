"""`tser list` and `tser methods`: what there is to choose from, plug-ins' names among it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tser_cli.base.errors import ConfigError, unknown
from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json
from tser_cli.settings import registry

EXAMPLES = (
    "tser list recipes",
    "tser list methods --plugin mymethod.py",
    "tser list profiles --json",
)
METHODS_EXAMPLES = ("tser methods", "tser methods --json")
KINDS = ("methods", "models", "datasets", "recipes", "profiles")
What = Annotated[
    str,
    typer.Argument(
        help=f"One of {', '.join(KINDS)}.",
        metavar="|".join(KINDS),
        show_default=False,
        autocompletion=lambda incomplete: [kind for kind in KINDS if kind.startswith(incomplete)],
    ),
]


def listing(what: What, plugin: opt.Plugin = None, as_json: opt.Json = False) -> None:
    """List what there is to choose from, names that plug-ins add among it."""
    if what not in KINDS:
        raise ConfigError(unknown("list", what, KINDS))
    if what == "methods" and not as_json:
        present.show_methods(registry.METHODS)
        return
    from tser_cli.report import lists

    rows = _profiles() if what == "profiles" else lists.ROWS[what]()
    present_json.show(rows) if as_json else present.output().print(lists.choices_table(rows))


def _profiles() -> list[dict[str, Any]]:
    from tser_cli.energy.prices import PROFILES
    from tser_cli.report import lists

    return lists.profiles(PROFILES.values())


def methods(plugin: opt.Plugin = None, as_json: opt.Json = False) -> None:
    """List the training methods: what each does, where it comes from, the weights it reads."""
    listing("methods", plugin, as_json)
