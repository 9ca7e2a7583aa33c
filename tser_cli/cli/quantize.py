"""`tser quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present


def quantize(
    run: opt.RunFolder = None,
    bits: Annotated[int, typer.Option("--bits", help="8 or 4 bits a weight.")] = 8,
    images: Annotated[
        int, typer.Option("--images", help="Training images that calibrate the norms.")
    ] = 1024,
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """Round the weights of a finished student to integers; a new run, which names its parent.

    No training: for that, distil with --set model.weight_bits=8.
    """
    from tser_cli.cli.present_deployment import show_quantized
    from tser_cli.engine.commands.quantize import QuantizeRequest, quantize

    changes = {"data.dir": data_dir, "training.device": device}
    request = QuantizeRequest(
        bits=bits,
        run=run,
        runs_dir=runs_dir,
        images=images,
        changes=changes,
        progress=present.progress(),
    )
    show_quantized(quantize(request))
