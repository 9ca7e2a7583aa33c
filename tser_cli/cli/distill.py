"""`tser distill`."""

from __future__ import annotations

from typing import Annotated

from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json
from tser_cli.cli.grouped import NETWORKS
from tser_cli.cli.groups import TrainingOptions
from tser_cli.cli.layers import teacher_meant

EXAMPLES = (
    "tser distill --teacher resnet34 --student resnet18 -T 2",
    "tser distill --method kd --seed 1 --epochs 20 --set optimizer.lr=0.05",
    "tser distill --recipe cifar100/resnet18_tser --dry-run",
    "tser distill --teacher latest --student vgg11 -T 4",
)
Teacher = Annotated[
    str | None,
    opt.option(
        NETWORKS,
        "--teacher",
        help="An architecture (its newest run, or one is trained first), a run, a model file or "
        "MODULE:FUNCTION.",
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
    opt.option(NETWORKS, "--student", help="The architecture of the SNN, as resnet18."),
]


def distill(
    training: TrainingOptions,
    teacher: Teacher = None,
    teacher_weights: TeacherWeights = None,
    student: Student = None,
    timesteps: opt.Timesteps = None,
    method: opt.Method = None,
    temperature: opt.Temperature = None,
    as_json: opt.Json = False,
) -> None:
    """Distil a teacher into a spiking student, and evaluate it at every time step."""
    flags = {
        "model.teacher": teacher_meant(teacher, training.runs_dir),
        "model.teacher_weights": teacher_weights,
        "model.student": student,
        "model.timesteps": timesteps,
        "method.name": method,
        "method.temperature": temperature,
    }
    config = training.config("student", flags)
    from tser_cli.engine.commands.distill import distill as command
    from tser_cli.engine.commands.dry_run import plan_student

    options = training.options()
    if training.dry_run:
        plan = plan_student(config, options)
        present_json.show(plan) if as_json else present.show_training_plan(plan)
        return
    result = command(config, options)
    if as_json:
        present_json.show_run(result)
    else:
        present.show_run(result, present.next_after_student(options.runs_dir))
