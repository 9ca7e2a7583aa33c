"""Write docs/command-line.md from the help texts of the commands.

    python docs/make_command_line.py           # brings the page up to date
    python docs/make_command_line.py --check   # exit code 1 where it is not

What the page says of an option is said in its help alone: change it there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from inspect import cleandoc
from pathlib import Path

from tser_cli.cli.app import EXAMPLES
from tser_cli.cli.options import offered
from tser_cli.cli.verbs import VERBS, Verb
from tser_cli.settings.options import Stated

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
WORDS = (("int", "INTEGER"), ("float", "NUMBER"), ("Path", "PATH"), ("str", "TEXT"))
OTHERS = "Options"


def page() -> str:
    """Return the whole page, in Markdown."""
    shown = [verb for verb in VERBS if not verb.hidden]
    return HEAD + overview(shown) + "".join(map(section, shown))


def overview(verbs: Sequence[Verb]) -> str:
    """Return the commands, by panel."""
    lines = ["| | command | what it does |", "| --- | --- | --- |"]
    panel = ""
    for verb in verbs:
        summary = paragraphs(verb)[0]
        title = "" if verb.panel == panel else verb.panel
        lines.append(f"| {title} | [`{verb.name}`](#tser-{verb.name}) | {summary} |")
        panel = verb.panel
    return "\n".join([*lines, "", "For a start:", "", *_indented(EXAMPLES), ""])


def paragraphs(verb: Verb) -> list[str]:
    """Return the help of a command, a line a paragraph."""
    return [" ".join(part.split()) for part in cleandoc(str(verb.request.__doc__)).split("\n\n")]


def section(verb: Verb) -> str:
    """Return what the page says of one command."""
    text = "\n\n".join(paragraphs(verb))
    lines = [f"\n## tser {verb.name}\n", text, "", *_indented(verb.examples), ""]
    panels: dict[str, list[str]] = {}
    for one in offered(verb.request, verb.document is not None):
        title = (one.option.panel or OTHERS) if one.option.flags else "Arguments"
        panels.setdefault(title, []).append(row(one))
    for title, rows in panels.items():
        lines += [f"| {title} | | default |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def row(one: Stated) -> str:
    """Return the row of an option or argument: its name, its help, its default."""
    option, default = one.option, one.default
    if option.flags:
        words = [word for kind, word in WORDS if kind in str(one.hint)]
        flags = sorted(option.flags.split(), key=len, reverse=True)
        word = option.metavar or (words[0] if words else "")
        name = f"{', '.join(f'`{flag}`' for flag in flags)} {word}".strip()
    else:
        optional = "" if default is MISSING else " (may be left out)"
        name = f"`{option.metavar or one.name.upper()}`{optional}"
    stated = f"`{default}`" if default is not MISSING and default else ""
    variable = f" Variable: `{option.variable}`." if option.variable else ""
    cells = (name, f"{option.help}{variable}", option.shown or stated)
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
