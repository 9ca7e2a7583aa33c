"""`tser distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present

Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        help="An architecture (its newest run, or one is trained first), a run, a model file or "
        "MODULE:FUNCTION.",
        show_default=False,
        rich_help_panel=opt.SETTINGS,
    ),
]
TeacherWeights = Annotated[
    str | None,
    typer.Option(
        "--teacher-weights",
        help="Weights of --teacher MODULE:FUNCTION: safetensors or a state dict.",
        show_default=False,
        rich_help_panel=opt.SETTINGS,
    ),
]
Student = Annotated[
    str | None,
    typer.Option(
        "--student",
        help="The architecture of the SNN, as resnet18.",
        show_default=False,
        rich_help_panel=opt.SETTINGS,
    ),
]


def distill(
    teacher: Teacher = None,
    teacher_weights: TeacherWeights = None,
    student: Student = None,
    timesteps: opt.Timesteps = None,
    dataset: opt.Dataset = None,
    data_dir: opt.DataDir = None,
    method: opt.Method = None,
    temperature: opt.Temperature = None,
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
    """Distil a teacher into a spiking student, and evaluate it at every time step."""
    opt.check_resume(resume)
    flags = {
        "model.teacher": opt.teacher_meant(teacher, runs_dir),
        "model.teacher_weights": teacher_weights,
        "model.student": student,
        "model.timesteps": timesteps,
        "data.name": dataset,
        "data.dir": data_dir,
        "method.name": method,
        "method.temperature": temperature,
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
    config = opt.training_config("student", flags, recipe, assignments, runs_dir)
    from tser_cli.engine.commands.distill import distill as command
    from tser_cli.engine.commands.dry_run import plan_student
    from tser_cli.engine.runtime.context import Options

    options = Options(runs_dir, resume, present.progress())
    if dry_run:
        present.show_training_plan(plan_student(config, options))
        return
    present.show_run(
        command(config, options), present.next_after_student(runs_dir, Options().runs_dir)
    )
