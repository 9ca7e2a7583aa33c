"""`tser doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.base.errors import NOT_HELD
from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json

EXAMPLES = ("tser doctor", "tser doctor --quick --json")
Quick = Annotated[bool, typer.Option("--quick", help="Compile nothing and measure no speed.")]


def doctor(
    quick: Quick = False,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = Path("runs"),
    as_json: opt.Json = False,
) -> None:
    """Look at this machine: versions, devices, load, speed, data, room; what to do about faults.

    Exit code 0: all is well, notes aside; 4: something is wrong.
    """
    from tser_cli.cli.present_doctor import show_checks
    from tser_cli.engine.commands.doctor import WRONG, DoctorRequest, examine

    checks = examine(DoctorRequest(runs_dir, data_dir or "", quick, present.progress()))
    present_json.show(checks) if as_json else show_checks(checks)
    if any(check.state == WRONG for check in checks):
        raise typer.Exit(NOT_HELD)
