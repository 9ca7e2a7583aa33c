"""`tser export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.base.errors import NOT_HELD
from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json
from tser_cli.cli.groups import RunOptions

EXAMPLES = (
    "tser export --format nir --output student.nir",
    "tser export --run resnet18_T2_tser --format onnx --output student.onnx --stateful",
)


def export(
    format_name: Annotated[
        str, typer.Option("--format", help="nir, onnx or safetensors.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", help="Where the file goes.", show_default=False)
    ],
    measured: RunOptions,
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
    as_json: opt.Json = False,
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
        run=measured.run,
        runs_dir=measured.runs_dir,
        stateful=stateful,
        potentials=potentials,
        verify=verify,
        images=images,
        changes=measured.changes(),
        progress=present.progress(),
    )
    exported = export(request)
    if as_json:
        present_json.show(exported)
    else:
        show_export(exported)
    if not exported.holds:
        raise typer.Exit(NOT_HELD)
