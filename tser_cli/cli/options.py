"""The options of a request as typer takes them, what a shell offers for them, and help texts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, replace
from inspect import Parameter, Signature, cleandoc
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

import tser_cli
from tser_cli.base.errors import ConfigError, TserError
from tser_cli.cli import terminal
from tser_cli.settings import options, registry

Kind = TypeVar("Kind", bound=type[TyperCommand] | type[TyperGroup])
PACKAGE = Path(tser_cli.__file__).parent
FIRST = "_first"  # ends the name of the argument that stands for an option
JSON = options.Option(
    "--json", "One JSON document on standard output instead of text.", options.OUTPUT
)
QUIET = options.Option("--quiet -q", "Only results, warnings and errors.", options.OUTPUT)
VERBOSE = options.Option(
    "--verbose -v",
    "Also where settings come from, an audit's notes, and the traceback of an error.",
    options.OUTPUT,
)


def is_there(*needs: str) -> bool:
    """Return whether the package holds these files and folders: a wing may be taken off."""
    # a look at the disk: importing a wing to find out would load torch for --help
    return all((PACKAGE / path).exists() for path in needs)


def offered(request: type[Any], json: bool) -> list[options.Stated]:
    """Return the options of a command: arguments, then by panel; those without one come first."""
    ways = [("as_json", JSON)] if json else []
    ways += [("quiet", QUIET), ("verbose", VERBOSE)]
    own = [
        one
        for one in options.options_of(request)
        if is_there(*one.option.needs)
        and (one.option.panel != options.OWN_NETWORK or is_there(*options.ANY_NETWORK))
    ]
    # an option that may come first is an argument too
    own += [
        replace(one, name=f"{one.name}{FIRST}", option=replace(one.option, flags=""))
        for one in own
        if one.option.first
    ]
    every = [*own, *(options.Stated(name, bool, False, option) for name, option in ways)]
    places = ("", *options.PANELS)
    return sorted(every, key=lambda one: (one.option.flags != "", places.index(one.option.panel)))


def spread(request: type[Any], run: Callable[[Any, bool], None], json: bool) -> Callable[..., None]:
    """Return a function of the options of `request`, as typer takes one, that calls `run` with it.

    `run` is given the request, and whether JSON was asked for.
    """

    def call(*, quiet: bool, verbose: bool, as_json: bool = False, **given: Any) -> None:
        terminal.choose(quiet, verbose)
        # what was not given has the default of the request, which is said there alone
        own = {name: value for name, value in given.items() if value is not None}
        for name in [name for name in own if name.endswith(FIRST)]:
            place = name.removesuffix(FIRST)
            if place in own:
                raise ConfigError(f"{own[name]} and --{place} {own[place]}: name one {place}")
            own[place] = own.pop(name)
        run(request(**{k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}), as_json)

    # typer reads the signature and the annotations of a function, not its code
    parameters = [parameter_of(one) for one in offered(request, json)]
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = cleandoc(str(request.__doc__))
    return call


def parameter_of(one: options.Stated) -> Parameter:
    """Return an option as a parameter: by keyword, so that required ones may follow others."""
    option, default = one.option, one.default
    common: dict[str, Any] = {
        "help": option.help,
        "metavar": option.metavar,
        "show_default": option.shown or (default is not MISSING and bool(default)),
        "min": option.least,
        "autocompletion": COMPLETIONS.get(option.complete),
    }
    if option.complete == "plugin":
        # eager: the other options may name what a plug-in adds
        common |= {"callback": load_plugins, "is_eager": True}
    if option.flags:
        common |= {"envvar": option.variable, "rich_help_panel": option.panel or None}
        said = typer.Option(*option.flags.split(), **common)
    else:
        said = typer.Argument(**common)
    # typer takes a tuple for a fixed number of values
    hint = list[get_args(one.hint)[0]] if get_origin(one.hint) is tuple else one.hint  # type: ignore[misc]
    if default is MISSING:
        default = Parameter.empty
    elif hint is not bool:
        # "" or 0 may lie outside of what an option takes, which click checks of defaults too
        default = default or None
    return Parameter(
        one.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, said]
    )


def with_examples(kind: Kind, lines: Sequence[str]) -> Kind:
    """Return a class of commands whose help ends with these command lines, whole, to be copied."""

    # rich would wrap and indent an epilog; a line that is broken can't be copied
    class WithExamples(kind):  # type: ignore[valid-type, misc]
        def format_help(self, ctx: typer.Context, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            out = terminal.Terminal()
            out.print(" Examples", style="bold")
            for line in lines:
                out.print(f"   {line}", soft_wrap=True)
            out.print()

    return WithExamples  # type: ignore[return-value]


def load_plugins(value: list[str] | None) -> list[str] | None:
    """Import the plug-ins that are named on the line or installed."""
    from tser_cli.settings import plugins

    plugins.add_entry_points()
    plugins.load(plugins.asked_for(value))
    return value


# What a shell may be given to put into the user's command line: nothing that it would act on.
PLAIN = re.compile(r"[\w.+=-]+", re.ASCII)


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of runs and packaged students that begin so, and `latest`."""
    from tser_cli.engine.runs import find, students

    runs_dir = Path(context.params.get("runs_dir") or os.environ.get("TSER_RUNS_DIR") or "runs")
    names = [find.LATEST, *(run.name for run in find.run_folders(runs_dir))]
    plain = [name for name in names if PLAIN.fullmatch(name)]
    return [name for name in (*plain, *students.available()) if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Return the packaged recipes that begin so."""
    from tser_cli.settings import recipe

    return [name for name in recipe.available() if name.startswith(incomplete)]


def names_in(table: Any) -> Callable[[typer.Context, str], list[str]]:
    """Return a completion of the names in a registry, those of plug-ins on the line among them."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        with suppress(TserError):  # a shell can show no message
            load_plugins(context.params.get("plugin"))
        return [name for name in table if name.startswith(incomplete)]

    return complete


COMPLETIONS: dict[str, Callable[..., list[str]]] = {
    "run": complete_run,
    "recipe": complete_recipe,
    "model": names_in(registry.MODELS),
    "method": names_in(registry.METHODS),
    "dataset": names_in(registry.DATASETS),
    "list": lambda incomplete: [name for name in options.LISTS if name.startswith(incomplete)],
}
