"""`tser evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.base.errors import NOT_HELD
from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json
from tser_cli.cli.groups import MeasureOptions

EXAMPLES = (
    "tser evaluate --per-timestep",
    "tser evaluate --run resnet18_T2_tser --per-timestep -T 1-4",
    "tser evaluate --early-exit 0.8,0.9,0.99",
    "tser evaluate --energy-budget 3uJ",
)
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


def evaluate(
    measured: MeasureOptions,
    per_timestep: PerTimestep = False,
    timesteps: Timesteps = "",
    split: Split = "test",
    output: Output = None,
    plot: Plot = False,
    early_exit: EarlyExit = "",
    early_exit_entropy: EarlyExitEntropy = "",
    energy_budget: EnergyBudget = "",
    profile: Profile = "",
    batch_size: opt.ForwardBatch = None,
    precision: opt.Precision = None,
    as_json: opt.Json = False,
) -> None:
    """Measure a finished run at every time step; every image of the split counts once."""
    from tser_cli.engine.commands.evaluate import EvaluateRequest, evaluate_run

    changes = {
        **measured.changes(),
        "training.precision": precision,
        "training.eval_batch_size": batch_size,
    }
    result = evaluate_run(
        EvaluateRequest(
            run=measured.run,
            runs_dir=measured.runs_dir,
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
    if as_json:
        present_json.show(result)
    else:
        present.show_evaluation(result, per_timestep)
    if not result.kept:
        raise typer.Exit(NOT_HELD)
