"""`tser compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present_json
from tser_cli.cli.completion import complete_run

EXAMPLES = (
    "tser compare latest resnet18_T2_kd_s0",
    "tser compare runs/student/digits/resnet18_T2_* --json",
)
Runs = Annotated[
    list[Path],
    typer.Argument(
        help="Two or more runs: paths, names, unambiguous beginnings, or latest.",
        metavar="RUN RUN ...",
        show_default=False,
        autocompletion=complete_run,
    ),
]


def compare(runs: Runs, as_json: opt.Json = False, runs_dir: opt.RunsDir = Path("runs")) -> None:
    """Set runs side by side: the settings that differ, and results with their intervals.

    Runs that differ in the seed alone are taken together: mean, standard deviation, and the paired
    difference to the group of the first run.
    """
    from tser_cli.cli.present_runs import show_comparison
    from tser_cli.engine.commands.compare import compare_runs

    comparison = compare_runs(runs, runs_dir)
    if as_json:
        present_json.show(comparison.to_json())
    else:
        show_comparison(comparison)
