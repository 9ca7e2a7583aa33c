"""Write docs/command-line.md from the help texts of the commands.

    python docs/make_command_line.py           # brings the page up to date
    python docs/make_command_line.py --check   # exit code 1 where it is not

What the page says of an option is said in its help alone: change it there.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from typer.models import ArgumentInfo

from tser_cli.cli.app import COMMANDS, EXAMPLES
from tser_cli.cli.grouped import grouped

PAGE = Path(__file__).resolve().parent / "command-line.md"
HEAD = """# The command line

<!-- made by docs/make_command_line.py from the help texts: change those, not this page -->

Results go to standard output, progress and messages to standard error. Settings come from the
defaults, then the recipe, then variables such as `TSER_OPTIMIZER_LR=0.05`, then `--set` and flags.
A *RUN* is the path of its folder, its name, an unambiguous beginning of its name, or `latest`, the
run that finished last. The exit codes are in
[getting started](getting-started.md#exit-codes).

`tser --install-completion` teaches your shell to complete commands, options, methods, recipes and
the names of runs. `NO_COLOR=1` leaves the colours out.

"""
WORDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
OTHERS = "Options"


def page() -> str:
    """Return the whole page, in Markdown."""
    return HEAD + overview() + "".join(section(*entry) for entry in COMMANDS)


def overview() -> str:
    """Return the commands, by panel."""
    lines = ["| | command | what it does |", "| --- | --- | --- |"]
    panels: list[str] = []
    for name, function, panel, _ in COMMANDS:
        shown = "" if panel in panels else panel
        panels.append(panel)
        lines.append(f"| {shown} | [`{name}`](#tser-{name}) | {summary(function)} |")
    return "\n".join([*lines, "", "For a start:", "", *_indented(EXAMPLES), ""])


def summary(function: Any) -> str:
    """Return the first sentence of a command's help."""
    return " ".join(str(inspect.getdoc(function)).split("\n\n")[0].split())


def section(name: str, function: Any, panel: str, examples: Sequence[str]) -> str:
    """Return what the page says of one command."""
    text = "\n\n".join(
        " ".join(part.split()) for part in str(inspect.getdoc(function)).split("\n\n")
    )
    lines = [f"\n## tser {name}\n", text, "", *_indented(examples), ""]
    parameters = list(inspect.signature(grouped(function)).parameters.values())
    panels: dict[str, list[str]] = {}
    for parameter in parameters:
        stated = parameter.annotation.__metadata__[0]
        if isinstance(stated, ArgumentInfo):
            panels.setdefault("Arguments", []).append(argument(parameter, stated))
        else:
            panels.setdefault(stated.rich_help_panel or OTHERS, []).append(
                option(parameter, stated)
            )
    for title, rows in panels.items():
        lines += [f"| {title} | | default |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def argument(parameter: Parameter, stated: Any) -> str:
    """Return the row of an argument."""
    word = stated.metavar or parameter.name.upper()
    optional = "" if parameter.default is Parameter.empty else " (may be left out)"
    return row(f"`{word}`{optional}", stated, parameter.default)


def option(parameter: Parameter, stated: Any) -> str:
    """Return the row of an option."""
    # typer keeps the first name of an Annotated option where defaults would be
    names = [name for name in (stated.default, *(stated.param_decls or ())) if name is not ...]
    word = stated.metavar or word_of(parameter.annotation)
    shown = ", ".join(f"`{name}`" for name in sorted(names, key=len, reverse=True))
    return row(f"{shown} {word}".strip(), stated, parameter.default)


def word_of(annotation: Any) -> str:
    """Return what stands for the value of an option: INTEGER; "" for a flag."""
    hint = get_args(annotation)[0]
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    hint = get_args(hint)[0] if get_origin(hint) is list else hint
    return WORDS.get(hint, "")


def row(name: str, stated: Any, default: Any) -> str:
    """Return a row: the name, the help, the default."""
    shown = stated.show_default
    if isinstance(shown, str):
        told = shown
    elif shown is False or default in (None, Parameter.empty, False, ""):
        told = ""
    else:
        told = f"`{default}`"
    variable = f" Variable: `{stated.envvar}`." if stated.envvar else ""
    cells = (name, f"{stated.help}{variable}", told)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _indented(lines: Sequence[str]) -> Iterator[str]:
    return (f"    {line}" for line in lines)


def main(check: bool) -> int:
    """Bring the page up to date, or tell that it is not."""
    before, after = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "", page()
    if before == after:
        return 0
    if not check:
        PAGE.write_text(after, encoding="utf-8")
    print(f"{'differs from the help texts' if check else 'written'}: {PAGE.name}")
    return int(check)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
