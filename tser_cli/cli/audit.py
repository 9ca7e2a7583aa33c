"""`tser audit`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from tser_cli.base.errors import NOT_HELD
from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json
from tser_cli.cli.groups import MeasureOptions
from tser_cli.cli.network_options import NetworkOptions

EXAMPLES = (
    "tser audit",
    "tser audit --run resnet18_T2_tser --images 64",
    "tser audit --network mypackage.models:build --dataset cifar10 -T 4",
)

Images = Annotated[int, typer.Option("--images", help="Images to look at.", min=2)]


def audit(
    measured: MeasureOptions,
    own: NetworkOptions,
    images: Images = 16,
    as_json: opt.Json = False,
) -> None:
    """Find what is wrong with a spiking network: resets, mixed images, real inputs, dead neurons.

    Exit code 0: clean; 4: something was found.
    """
    from tser_cli.engine.commands.audit import AuditRequest, run_audit

    places, subject = measured.changes(), None
    if own.check({"--run": measured.run}):
        subject = own.request(places, images, images)
    asked = AuditRequest(measured.run, measured.runs_dir, subject, images, places)
    result = run_audit(replace(asked, progress=present.progress()))
    present_json.show(result) if as_json else present.show_audit(result)
    if not result.found.clean:
        raise typer.Exit(NOT_HELD)
