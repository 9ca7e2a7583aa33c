"""`tser ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.base.errors import TrainingError
from tser_cli.cli import layers, present, present_json
from tser_cli.cli import options as opt
from tser_cli.cli.completion import complete_recipe
from tser_cli.cli.grouped import GRID, HOW, NETWORKS, PLACES
from tser_cli.settings import registry

EXAMPLES = (
    "tser ablate --vary method=kd,ts,tser --seeds 5",
    "tser ablate --vary temperature=1,2,4 --seeds 5 --epochs 20 --dry-run",
    "tser ablate ablations/digits_rivals --jobs 2",
)
Recipe = Annotated[
    str | None,
    typer.Argument(
        help="A recipe, as ablations/digits_rivals; it may say what to vary.",
        autocompletion=complete_recipe,
        show_default="the data set's own",
    ),
]
Vary = Annotated[
    list[str] | None,
    opt.option(GRID, "--vary", help="key=value,value: method=ce,kd,ts,tser. Repeatable."),
]
Seeds = Annotated[
    int | None, opt.option(GRID, "--seeds", help="Seeds 0..N-1 of each cell.", show_default="3")
]
Baseline = Annotated[
    str | None,
    opt.option(
        GRID, "--baseline", help="The cell to compare with: method=kd.", show_default="the first"
    ),
]
AccuracyMargin = Annotated[
    float | None,
    opt.option(
        GRID,
        "--accuracy-margin",
        help="Compare energies with early exit at the baseline's accuracy less so many points.",
        show_default="0.5",
    ),
]
Jobs = Annotated[
    int | None,
    opt.option(HOW, "--jobs", help="Cells side by side.", show_default="as many as GPUs", min=1),
]
Address = Annotated[
    str | None,
    opt.option(
        HOW,
        "--address",
        help="Run the cells on this Ray cluster: auto or HOST:PORT.",
        show_default="this machine",
    ),
]
Output = Annotated[
    Path | None,
    opt.option(
        PLACES,
        "--output",
        help="The ablation's folder.",
        show_default="ablations/NAME in the runs",
    ),
]
Teacher = Annotated[
    str | None,
    opt.option(
        NETWORKS,
        "--teacher",
        help="One teacher for all cells.",
        autocompletion=opt.names_in(registry.MODELS),
    ),
]


def ablate(
    recipe: Recipe = None,
    vary: Vary = None,
    seeds: Seeds = None,
    baseline: Baseline = None,
    accuracy_margin: AccuracyMargin = None,
    jobs: Jobs = None,
    address: Address = None,
    output: Output = None,
    teacher: Teacher = None,
    dataset: opt.Dataset = None,
    data_dir: opt.DataDir = None,
    epochs: opt.Epochs = None,
    device: opt.Device = None,
    assignments: opt.Assignments = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> None:
    """Compare settings over seeds: paired differences with 95 % intervals, CSVs and figures."""
    flags = {
        "data.name": dataset,
        "data.dir": data_dir,
        "model.teacher": layers.teacher_meant(teacher, runs_dir),
        "training.epochs": epochs,
        "training.device": device,
    }
    below, section, name = layers.ablation_layers(flags, recipe, assignments)
    from tser_cli.engine.ablation.folder import AblationFolder
    from tser_cli.engine.ablation.grid import ablation_name, make_request
    from tser_cli.engine.commands.ablate import ablate as command
    from tser_cli.engine.commands.dry_run import plan_ablation
    from tser_cli.engine.runs.opened import Options

    request = make_request(below, section, vary, seeds, baseline, accuracy_margin)
    layers.tell(request.notes)
    folder = output or runs_dir / "ablations" / ablation_name(request, name if not vary else "")
    place = AblationFolder(folder, runs_dir, jobs, address)
    progress = present.progress()
    if dry_run:
        plan = plan_ablation(request, place, Options(runs_dir, progress=progress))
        present_json.show(plan) if as_json else present.show_ablation_plan(plan)
        return
    result = command(request, place, progress)
    present_json.show_ablation(result) if as_json else present.show_ablation(result)
    if result.failures:
        raise TrainingError(
            f"{len(result.failures)} of {len(request.cells)} runs failed; the same command tries "
            "them again:\n" + "\n".join(result.failures)
        )
