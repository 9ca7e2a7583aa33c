"""`tser train-teacher`."""

from __future__ import annotations

from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json
from tser_cli.cli.groups import TrainingOptions
from tser_cli.settings import registry

EXAMPLES = (
    "tser train-teacher resnet34 --dataset digits",
    "tser train-teacher vgg11 --dataset cifar10 --epochs 100 --dry-run",
    "tser train-teacher --recipe fashion-mnist/resnet20_teacher",
)


def train_teacher(
    training: TrainingOptions,
    model: Annotated[
        str | None,
        typer.Argument(
            help="The architecture, as resnet34.",
            autocompletion=opt.names_in(registry.MODELS),
            show_default=False,
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Train an ANN to teach from, in a run folder of its own."""
    config = training.config("teacher", {"model.teacher": model})
    from tser_cli.engine.commands.train import train_teacher as command

    options = training.options()
    if training.dry_run:
        from tser_cli.engine.commands.dry_run import plan_teacher

        plan = plan_teacher(config, options)
        present_json.show(plan) if as_json else present.show_training_plan(plan)
        return
    result, data = command(config, options), config.data
    if as_json:
        present_json.show_run(result)
    else:
        present.show_run(result, present.next_after_teacher(result.folder, data.name, data.dir))
