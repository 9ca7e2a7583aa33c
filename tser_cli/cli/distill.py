"""`tser distill`."""

from __future__ import annotations

from typing import Annotated

import typer

from tser_cli.base.errors import NOT_HELD
from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json
from tser_cli.cli.grouped import NETWORKS
from tser_cli.cli.groups import TrainingOptions
from tser_cli.cli.layers import teacher_meant
from tser_cli.settings import registry

EXAMPLES = (
    "tser distill --teacher resnet34 --student resnet18 -T 2",
    "tser distill --method kd --seed 1 --epochs 20 --set optimizer.lr=0.05",
    "tser distill --recipe cifar100/resnet18_tser --dry-run",
    "tser distill --teacher latest --student vgg11 -T 4",
    "tser distill --teacher resnet34 --student resnet18 -T 2 --energy-budget 4uJ",
)
Teacher = Annotated[
    str | None,
    opt.option(
        NETWORKS,
        "--teacher",
        help="An architecture (its newest run, or one is trained first), a run, a model file or "
        "MODULE:FUNCTION.",
        autocompletion=opt.names_in(registry.MODELS),
    ),
]
TeacherWeights = Annotated[
    str | None,
    opt.option(
        NETWORKS,
        "--teacher-weights",
        help="Weights of --teacher MODULE:FUNCTION: safetensors or a state dict.",
    ),
]
Student = Annotated[
    str | None,
    opt.option(
        NETWORKS,
        "--student",
        help="The architecture of the SNN, as resnet18.",
        autocompletion=opt.names_in(registry.MODELS),
    ),
]
EnergyBudget = Annotated[
    str | None,
    opt.option(
        NETWORKS,
        "--energy-budget",
        help="What an image may cost: 4uJ, or 25% of the ANN of the same shape.",
        metavar="4uJ|25%",
    ),
]


def distill(
    training: TrainingOptions,
    teacher: Teacher = None,
    teacher_weights: TeacherWeights = None,
    student: Student = None,
    timesteps: opt.Timesteps = None,
    method: opt.Method = None,
    energy_budget: EnergyBudget = None,
    temperature: opt.Temperature = None,
    as_json: opt.Json = False,
) -> None:
    """Distil a teacher into a spiking student, and evaluate it at every time step.

    Exit code 4: done, but the energy budget is not kept.
    """
    flags = {
        "model.teacher": teacher_meant(teacher, training.runs_dir),
        "model.teacher_weights": teacher_weights,
        "model.student": student,
        "model.timesteps": timesteps,
        "method.name": method,
        "energy.budget": energy_budget,
        "method.temperature": temperature,
    }
    config = training.config("student", flags)
    from tser_cli.engine.commands.train import distill as command

    options = training.options()
    if training.dry_run:
        from tser_cli.engine.commands.dry_run import plan_student

        plan = plan_student(config, options)
        present_json.show(plan) if as_json else present.show_training_plan(plan)
        return
    result = command(config, options)
    if as_json:
        present_json.show_run(result)
    else:
        present.show_run(result, present.next_after_student(options.runs_dir))
    if result.energy_budget_kept is False:
        raise typer.Exit(NOT_HELD)
