"""`tser evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt


def evaluate(
    run: opt.RunFolder = None,
    per_timestep: Annotated[
        bool, typer.Option("--per-timestep", help="Show the accuracy at every time step.")
    ] = False,
    timesteps: Annotated[
        str,
        typer.Option(
            "-T",
            "--timesteps",
            help="4, 1-6 or 1,2,4; any, not only as trained.",
            show_default="as trained",
        ),
    ] = "",
    split: Annotated[str, typer.Option("--split", help="test, validation or train.")] = "test",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="Where the CSV goes.", show_default="per_timestep.csv of the run"
        ),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw accuracy at each t into the run's figures/.")
    ] = False,
    data_dir: opt.DataDir = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", help="Images a forward pass.", show_default=False, min=1),
    ] = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """Measure a finished run at every time step; every image of the split counts once."""
    from tser_cli.engine.measure import Evaluating, evaluate_run

    changes = {
        "data.dir": data_dir,
        "training.device": device,
        "training.precision": precision,
        "training.eval_batch_size": batch_size,
    }
    evaluate_run(Evaluating(run, runs_dir, timesteps, split, output, per_timestep, plot, changes))
