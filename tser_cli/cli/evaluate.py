"""`tser evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present

NOT_KEPT = 4  # done, but the energy budget does not hold
PerTimestep = Annotated[
    bool, typer.Option("--per-timestep", help="Show the accuracy at every time step.")
]
Timesteps = Annotated[
    str,
    typer.Option(
        "-T",
        "--timesteps",
        help="4, 1-6 or 1,2,4; any, not only as trained.",
        show_default="as trained",
    ),
]
Split = Annotated[str, typer.Option("--split", help="test, validation or train.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", help="Where the CSV goes.", show_default="per_timestep.csv of the run"
    ),
]
Plot = Annotated[
    bool, typer.Option("--plot", help="Draw accuracy at each t into the run's figures/.")
]
EarlyExit = Annotated[
    str,
    typer.Option(
        "--early-exit",
        help="Stop an image once its confidence reaches this: 0.8,0.9,0.99.",
        show_default=False,
    ),
]
EarlyExitEntropy = Annotated[
    str,
    typer.Option(
        "--early-exit-entropy",
        help="Stop an image once its entropy, in nats, is down to this: 0.5,0.1.",
        show_default=False,
    ),
]
EnergyBudget = Annotated[
    str,
    typer.Option(
        "--energy-budget",
        help="Keep 3uJ, or 25% of the ANN's energy, by early exit; the threshold is chosen on "
        "held-out images. Exit code 4 where the test images need more.",
        show_default=False,
    ),
]
Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        help="What early exit charges: as for tser energy.",
        show_default="by the weights' bits",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Images a forward pass.", show_default=False, min=1),
]


def evaluate(
    run: opt.RunFolder = None,
    per_timestep: PerTimestep = False,
    timesteps: Timesteps = "",
    split: Split = "test",
    output: Output = None,
    plot: Plot = False,
    early_exit: EarlyExit = "",
    early_exit_entropy: EarlyExitEntropy = "",
    energy_budget: EnergyBudget = "",
    profile: Profile = "",
    data_dir: opt.DataDir = None,
    batch_size: BatchSize = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """Measure a finished run at every time step; every image of the split counts once."""
    from tser_cli.engine.commands.evaluate import EvaluateRequest, evaluate_run

    changes = {
        "data.dir": data_dir,
        "training.device": device,
        "training.precision": precision,
        "training.eval_batch_size": batch_size,
    }
    result = evaluate_run(
        EvaluateRequest(
            run=run,
            runs_dir=runs_dir,
            timesteps=timesteps,
            split=split,
            output=output,
            plot=plot,
            early_exit=early_exit,
            early_exit_entropy=early_exit_entropy,
            energy_budget=energy_budget,
            profile=profile,
            changes=changes,
            progress=present.progress(),
        )
    )
    present.show_evaluation(result, per_timestep)
    if not result.kept:
        raise typer.Exit(NOT_KEPT)
