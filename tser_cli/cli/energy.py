"""`tser energy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present

Output = Annotated[Path, typer.Argument(help="Where the table goes, as report.csv.")]
Images = Annotated[
    int | None,
    typer.Option("--images", help="Test images to count.", show_default="all of them", min=1),
]
Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        help="horowitz-45nm-fp32, -fp16 or -int8 (whole names), loihi, or a TOML file.",
    ),
]
PerImage = Annotated[
    Path | None,
    typer.Option(
        "--per-image", help="A second CSV: right or wrong and energy of each image at each t."
    ),
]
Memory = Annotated[
    bool, typer.Option("--memory", help="Also the traffic of weights and neuron state.")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Images a forward pass.", show_default=False, min=1),
]


def energy(
    output: Output,
    run: opt.RunFolder = None,
    images: Images = None,
    profile: Profile = "horowitz-45nm-fp32",
    per_image: PerImage = None,
    memory: Memory = False,
    data_dir: opt.DataDir = None,
    batch_size: BatchSize = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """Count the synaptic operations of a finished student exactly, and price them."""
    from tser_cli.engine.commands.energy import EnergyRequest, measure_energy

    changes = {
        "data.dir": data_dir,
        "training.device": device,
        "training.precision": precision,
        "training.eval_batch_size": batch_size,
    }
    result = measure_energy(
        EnergyRequest(
            output,
            run,
            runs_dir,
            images or 0,
            profile,
            per_image,
            memory,
            changes,
            present.progress(),
        )
    )
    present.show_energy(result)
