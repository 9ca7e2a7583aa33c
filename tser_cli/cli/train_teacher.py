"""`tser train-teacher`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present


def train_teacher(
    model: Annotated[
        str | None, typer.Argument(help="The architecture, as resnet34.", show_default=False)
    ] = None,
    dataset: opt.Dataset = None,
    data_dir: opt.DataDir = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    accumulate: opt.Accumulate = None,
    lr: opt.Lr = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    deterministic: opt.Deterministic = None,
    checkpoint_every: opt.CheckpointEvery = None,
    recipe: opt.Recipe = None,
    assignments: opt.Assignments = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
    resume: opt.Resume = "auto",
    dry_run: opt.DryRun = False,
) -> None:
    """Train an ANN to teach from, in a run folder of its own."""
    opt.check_resume(resume)
    flags = {
        "model.teacher": model,
        "data.name": dataset,
        "data.dir": data_dir,
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.accumulate": accumulate,
        "optimizer.lr": lr,
        "training.seed": seed,
        "training.device": device,
        "training.precision": precision,
        "training.deterministic": deterministic,
        "training.checkpoint_every": checkpoint_every,
    }
    config = opt.training_config("teacher", flags, recipe, assignments, runs_dir)
    from tser_cli.engine.commands.dry_run import plan_teacher
    from tser_cli.engine.commands.train_teacher import train_teacher as command
    from tser_cli.engine.runtime.context import Options

    options = Options(runs_dir, resume, present.progress())
    if dry_run:
        present.show_training_plan(plan_teacher(config, options))
        return
    result = command(config, options)
    data = config.data
    present.show_run(result, present.next_after_teacher(result.folder, data.name, data.dir))
