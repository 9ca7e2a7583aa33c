"""`tser quantize`."""

from __future__ import annotations

from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json
from tser_cli.cli.groups import MeasureOptions

EXAMPLES = ("tser quantize --bits 8", "tser quantize --run resnet18_T2_tser --bits 4")


def quantize(
    measured: MeasureOptions,
    bits: Annotated[int, typer.Option("--bits", help="8 or 4 bits a weight.")] = 8,
    images: Annotated[
        int, typer.Option("--images", help="Training images that calibrate the norms.")
    ] = 1024,
    as_json: opt.Json = False,
) -> None:
    """Round the weights of a finished student to integers; a new run, which names its parent.

    No training: for that, distil with --set model.weight_bits=8.
    """
    from tser_cli.cli.present_deployment import show_quantized
    from tser_cli.engine.commands.quantize import QuantizeRequest, quantize

    request = QuantizeRequest(
        bits=bits,
        run=measured.run,
        runs_dir=measured.runs_dir,
        images=images,
        changes=measured.changes(),
        progress=present.progress(),
    )
    quantized = quantize(request)
    present_json.show(quantized) if as_json else show_quantized(quantized)
