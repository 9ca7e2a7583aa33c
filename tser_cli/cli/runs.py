"""`tser runs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tser_cli.base.errors import ConfigError
from tser_cli.cli import options as opt
from tser_cli.cli import present_json
from tser_cli.cli.completion import complete_run
from tser_cli.cli.terminal import tell

REMOVE = "remove"
EXAMPLES = (
    "tser runs",
    "tser runs method=tser,kd T=2 state=finished --sort accuracy --reverse",
    "tser runs --json",
    "tser runs remove latest",
)
Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="Filters, as method=tser T=1,2 student='resnet*': columns and any settings. Or: "
        "remove, and the runs to delete.",
        metavar="KEY=VALUE | remove RUN",
        show_default=False,
        autocompletion=complete_run,
    ),
]
Sort = Annotated[
    str, typer.Option("--sort", help="A column, as accuracy or energy; the newest come first.")
]
Reverse = Annotated[bool, typer.Option("--reverse", help="The largest first.")]
Yes = Annotated[bool, typer.Option("--yes", help="remove: don't ask.")]


def runs(
    words: Words = None,
    sort: Sort = "age",
    reverse: Reverse = False,
    yes: Yes = False,
    as_json: opt.Json = False,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """List the runs, or remove some."""
    named = words or []
    if named[:1] == [REMOVE]:
        _remove([Path(name) for name in named[1:]], runs_dir, yes)
        return
    from tser_cli.cli import present_runs
    from tser_cli.engine.commands.runs import RunsRequest, list_runs

    entries = list_runs(RunsRequest(runs_dir, named, sort, reverse))
    if as_json:
        present_json.show([entry.to_json() for entry in entries])
    else:
        present_runs.show_runs(entries, runs_dir)


def _remove(names: list[Path], runs_dir: Path, yes: bool) -> None:
    from tser_cli.cli import present_runs
    from tser_cli.engine.commands.runs import find_removable, remove

    if not names:
        raise ConfigError("remove: name the runs to delete; tser runs lists them")
    removable = find_removable(names, runs_dir)
    question = present_runs.removal_question(removable)
    if not yes and not _agreed(question):
        tell("nothing was removed")
        raise typer.Exit(1)
    for run in removable:
        remove(run)
        tell(f"removed: {run.entry.folder}")


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} There is nobody to ask; say --yes beforehand")
    tell(f"{question} [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
