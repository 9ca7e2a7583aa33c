"""Show what tser doctor found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tser_cli.cli import present

if TYPE_CHECKING:
    from tser_cli.engine.commands.doctor import Check

STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def show_checks(checks: Sequence[Check]) -> None:
    """Show a line a thing, what to do about it below, and how many are wrong."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_header=False)
    for column in ("state", "name", "found"):
        table.add_column(column, no_wrap=column != "found", overflow="fold")
    for check in checks:
        todo = f"\nto do: {check.advice}" if check.advice else ""
        state = Text(check.state, style=STYLES[check.state])
        table.add_row(state, check.name, f"{check.found}{todo}")
    out = present.output()
    out.print(table)
    states = Counter(check.state for check in checks)
    out.print(f"{states['wrong']} wrong, {states['note']} to know, {states['ok']} well")
