"""Show the list of runs, and runs side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tser_cli.cli import present
from tser_cli.cli.terminal import tell

if TYPE_CHECKING:
    from tser_cli.engine.commands.compare import Comparison
    from tser_cli.engine.commands.runs import Removable
    from tser_cli.engine.runs.record import RunEntry

INTERVALS = (
    "95 % interval: how far other test images may lead, not another training. p: both err equally "
    "often on these images (McNemar)"
)
ONE_EACH = (
    "One run each says little of the settings: the seed alone moves accuracy. Compare several "
    "seeds (tser ablate), or name more runs here"
)
WIDEST = 1000  # columns


def show_runs(entries: Sequence[RunEntry], runs_dir: Path) -> None:
    """Show a line a run; what is wrong with one goes to standard error."""
    from tser_cli.report import lists

    out = present.output()
    # into a pipe or a file nothing is left out
    width = out.width if out.is_terminal or "COLUMNS" in os.environ else None
    table = lists.listing([entry.to_json() for entry in entries], time.time(), width)
    if width is None:
        out.width = WIDEST
    if entries:
        out.print(table)
    else:
        out.print(f"no such run under {runs_dir}", soft_wrap=True)
    for entry in entries:
        if entry.trouble:
            tell(f"warning: {entry.name} is damaged: {entry.trouble}")


def removal_question(runs: Sequence[Removable]) -> str:
    """Return what would be removed, and the question whether to."""
    from tser_cli.report import lists

    lines = []
    for run in runs:
        state, size = run.entry.state, lists.size(run.entry.size)
        taught = f"; {run.students} students here learned from it" if run.students else ""
        lines.append(f"  {run.entry.folder} ({state}, {size}{taught})")
    what = "this run" if len(runs) == 1 else f"these {len(runs)} runs"
    return "\n".join([*lines, f"Remove {what} with all files?"])


def show_comparison(comparison: Comparison) -> None:
    """Show which runs there are, the settings that differ, and what came out."""
    from tser_cli.report import lists

    out, document = present.output(), comparison.to_json()
    entries = [one.entry for one in comparison.figures]
    for letter, entry in zip(lists.letters(len(entries)), entries, strict=True):
        out.print(f"{letter}  {entry.folder}", soft_wrap=True)
    titles = {"settings that differ": comparison.settings, "made with": comparison.surroundings}
    for title, pairs in titles.items():
        if pairs:
            out.print(lists.side_by_side(title, pairs))
    if not comparison.settings:
        out.print("the settings are the same")
    out.print(lists.figures(document["runs"]))
    if comparison.cells:
        axes = comparison.axes or ("group",)
        out.print(lists.ablation_table("over seeds", comparison.cells, axes, axes))
    out.print("\n".join([INTERVALS, *([] if comparison.cells else [ONE_EACH])]), soft_wrap=True)
    for one in comparison.figures:
        if one.entry.trouble or one.trouble:
            tell(f"warning: {one.entry.name}: {one.entry.trouble or one.trouble}")
