"""`tser report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present
from tser_cli.cli.completion import complete_run

EXAMPLES = (
    "tser report",
    "tser report --output page.html",
    "tser report runs/ablations/digits_rivals",
)


def report(
    subjects: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN|ABLATION]...",
            help="Runs: paths, names, unambiguous beginnings, or latest; folders of ablations.",
            show_default="the newest finished student",
            autocompletion=complete_run,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Where the page goes.")] = Path(
        "report.html"
    ),
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="Run the networks over the test images, for early exit and pictures.",
        ),
    ] = True,
    images: Annotated[
        int, typer.Option("--images", help="Of how many test images; 0: all.", min=0)
    ] = 0,
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """Make one web page of finished runs and ablations, to look at and to send.

    The page is one file that needs no network: accuracy at each time step, energy beside other
    networks, layers, mistakes with their images, training, settings, the command. Several runs
    stand side by side. What a run lacks, the page says.
    """
    from tser_cli.engine.page.gather import ReportRequest, make_report

    request = ReportRequest(
        subjects=tuple(subjects or ()),
        runs_dir=runs_dir,
        output=output,
        measure=measure,
        images=images,
        changes={"data.dir": data_dir, "training.device": device},
        progress=present.progress(),
    )
    present.show_report(make_report(request))
