"""`tser export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present


def export(
    format_name: Annotated[
        str, typer.Option("--format", help="nir, onnx or safetensors.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", help="Where the file goes.", show_default=False)
    ],
    run: opt.RunFolder = None,
    stateful: Annotated[
        bool,
        typer.Option(
            "--stateful",
            help="ONNX: one time step, membrane potentials as inputs and outputs.",
        ),
    ] = False,
    potentials: Annotated[
        str,
        typer.Option(
            "--potentials",
            help="float, or integer: ONNX with membranes of 32-bit integers, for integer weights.",
        ),
    ] = "float",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Load the file in other programs and compare every spike."
        ),
    ] = True,
    images: Annotated[int, typer.Option("--images", help="Test images that the check takes.")] = 16,
    data_dir: opt.DataDir = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """Write a finished student as a file for other programs, and prove that they agree.

    Beside the file: FILE.verified.json and a model card. Exit code 4, and no file, where a program
    gives other spikes.
    """
    from tser_cli.cli.present_deployment import show_export
    from tser_cli.engine.commands.export import ExportRequest, export

    request = ExportRequest(
        output=output,
        format_name=format_name,
        run=run,
        runs_dir=runs_dir,
        stateful=stateful,
        potentials=potentials,
        verify=verify,
        images=images,
        changes={"data.dir": data_dir},
        progress=present.progress(),
    )
    exported = export(request)
    show_export(exported)
    if not exported.holds:
        raise typer.Exit(4)
