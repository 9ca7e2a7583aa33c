"""Draw docs/figures/terminal.svg: the README's first command, as a terminal shows it.

    python docs/make_terminal.py         # trains for some minutes, then draws
    python docs/make_terminal.py --draw  # draws again what was printed then, from terminal.txt

Everything in the picture was printed by the commands. Of each training's epochs the first and the
last line are kept, and the temporary folder in which they ran is written as ~/demo.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

FIGURE = Path(__file__).resolve().parent / "figures" / "terminal.svg"
PRINTED = FIGURE.with_suffix(".txt")
COMMANDS = (
    "tser distill --teacher resnet34 --student resnet18 -T 2",
    "tser runs",
)
COLUMNS = 110
EPOCH = re.compile(r"epoch (\d+)/(\d+),")
DIM = ("training ", "run folder: ", "about ", "teacher: ", "no finished ", "epoch ", "  ... ")
THEME = TerminalTheme(
    (24, 26, 31),
    (222, 224, 228),
    [
        *((24, 26, 31), (224, 108, 117), (126, 199, 130), (224, 190, 112)),
        *((97, 175, 239), (198, 120, 221), (86, 182, 194), (222, 224, 228)),
    ],
)


def session(folder: Path) -> str:
    """Run the commands in `folder`, one after the other; return what a terminal would show."""
    shown = []
    for command in COMMANDS:
        environment = {**os.environ, "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "tser_cli", *command.split()[1:]],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # in the order in which they came
            text=True,
            check=True,
        )
        shown += [f"$ {command}", *abridged(done.stdout.splitlines()), ""]
    return "\n".join(shown).replace(str(folder.resolve()), "~/demo")


def abridged(lines: Sequence[str]) -> list[str]:
    """Return the lines with the first and the last epoch of each training, and how many between."""
    kept: list[str] = []
    for line in lines:
        found = EPOCH.match(line)
        number, last = (int(found[1]), int(found[2])) if found else (1, 1)
        if number == 2 and last > 2:
            kept.append(f"  ... {last - 2} more epochs")
        if number in (1, last):
            kept.append(line.rstrip())
    return kept


def picture(text: str) -> str:
    """Return the text as an SVG of a terminal's window."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    for line in text.rstrip().splitlines():
        console.print(Text(line, style=style_of(line)), soft_wrap=False, overflow="fold")
    svg = console.export_svg(
        title="tser", theme=THEME, code_format=without_fonts(), unique_id="terminal"
    )
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def without_fonts() -> str:
    """Return rich's SVG without the fonts that it would fetch from elsewhere."""
    usual = inspect.signature(Console.export_svg).parameters["code_format"].default
    return re.sub(r"@font-face \{\{.*?\}\}", "", usual, flags=re.DOTALL)


def style_of(line: str) -> str:
    """Return how a line is drawn: the prompt stands out, what is told on the way steps back."""
    if line.startswith("$ "):
        return "bold green"
    return "dim" if line.startswith(DIM) else ""


def main(draw_only: bool) -> None:
    """Run, unless that was done before, and draw."""
    if not draw_only:
        with tempfile.TemporaryDirectory() as folder:
            PRINTED.write_text(session(Path(folder)), encoding="utf-8")
    FIGURE.write_text(picture(PRINTED.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main("--draw" in sys.argv[1:])
