"""`tser ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt


def ablate(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe, as ablations/digits_rivals; it may say what to vary.",
            show_default="the data set's own",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", help="key=value,value: method=ce,kd,ts,tser. Repeatable."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="Seeds 0..N-1 of each cell.", show_default="3")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", help="The cell to compare with: method=kd.", show_default="the first"
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", help="Cells side by side.", show_default="as many as GPUs", min=1),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Run the cells on this Ray cluster: auto or HOST:PORT.",
            show_default="this machine",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="The ablation's folder.", show_default="ablations/NAME in the runs"
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="One teacher for all cells.", show_default=False),
    ] = None,
    dataset: opt.Dataset = None,
    data_dir: opt.DataDir = None,
    epochs: opt.Epochs = None,
    device: opt.Device = None,
    assignments: opt.Assignments = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
    dry_run: opt.DryRun = False,
) -> None:
    """Compare settings over seeds: paired differences with 95 % intervals, CSVs and figures."""
    flags = {
        "data.name": dataset,
        "data.dir": data_dir,
        "model.teacher": teacher,
        "training.epochs": epochs,
        "training.device": device,
    }
    layers, section, name = opt.ablation_layers(flags, recipe, assignments)
    from tser_cli.engine.ablation import folder as ablation_plan
    from tser_cli.engine.ablation import grid
    from tser_cli.engine.commands import ablate as engine

    request = grid.make_request(layers, section, vary, seeds, baseline)
    opt.tell(request.notes)
    # other --vary on the same recipe is another ablation
    title = "_".join([name.replace("/", "_"), *(request.names if vary else [])])
    folder = output or runs_dir / "ablations" / title
    place = ablation_plan.Place(folder, runs_dir, jobs, address)
    verb = ablation_plan.show_plan if dry_run else engine.ablate
    verb(request, place)
