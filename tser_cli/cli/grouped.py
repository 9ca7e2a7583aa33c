"""Options that come in groups: a parameter that is a dataclass of options becomes all of them.

    def energy(output: Output, own: NetworkOptions = NetworkOptions()) -> None: ...

is to typer a function with the fields of `NetworkOptions` in the place of `own`. Every command gets
--quiet and --verbose besides.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from inspect import Parameter, Signature
from typing import Annotated, Any, get_type_hints

import typer

from tser_cli.cli import verbosity

# The panels of a help text, in their order.
NETWORKS, OWN_NETWORK, DATA = "Networks and method", "Your own network", "Data"
GRID, HOW = "What to compare", "How to run"
TRAINING, MACHINE, SETTINGS = "Training", "Machine", "Settings"
PLACES, OUTPUT = "Places", "Output"
PANELS = (GRID, NETWORKS, OWN_NETWORK, DATA, TRAINING, HOW, MACHINE, SETTINGS, PLACES, OUTPUT)
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Only results, warnings and errors.", rich_help_panel=OUTPUT
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also where settings come from, and the traceback of an error.",
        rich_help_panel=OUTPUT,
    ),
]
HOW_MUCH = {"quiet": Quiet, "verbose": Verbose}


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Return `function` with each group of options spread out, as typer takes it."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @functools.wraps(function)
    def call(**given: Any) -> None:
        verbosity.choose(given.pop("quiet"), given.pop("verbose"))
        for name, group in groups.items():
            own = {field.name: given.pop(field.name) for field in fields(group)}
            given[name] = group(**own)
        function(**given)

    parameters = sorted(_spread(function, hints), key=_rank)
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _spread(function: Callable[..., None], hints: dict[str, Any]) -> Iterator[Parameter]:
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint):
            yield from _fields(hint)
        else:
            yield _option(parameter.name, hint, parameter.default)
    for name, hint in HOW_MUCH.items():
        yield _option(name, hint, False)


def _rank(parameter: Parameter) -> int:
    """Return the place of a parameter's panel in the help; those without one come first."""
    (stated,) = parameter.annotation.__metadata__
    panel = stated.rich_help_panel
    return PANELS.index(panel) if panel in PANELS else -1


def _fields(group: Any) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield _option(field.name, hints[field.name], field.default)


def _option(name: str, hint: Any, default: Any) -> Parameter:
    # by keyword, so that those that must be given may follow others
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)
