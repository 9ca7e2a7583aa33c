"""Train an ANN to learn from, in a run folder of its own."""

from __future__ import annotations

from tser_cli.config import Config
from tser_cli.engine.runs.result import RunResult
from tser_cli.engine.runtime.context import Context, Options, prepare
from tser_cli.engine.runtime.seeds import random_state, restore_random_state
from tser_cli.engine.teachers.fits import check_architecture
from tser_cli.engine.training.precision import settle_precision
from tser_cli.engine.training.training_run import (
    finish,
    open_for_training,
    settle_batch_size,
    teacher_task,
    train,
)


def train_teacher(config: Config, options: Options) -> RunResult:
    """Train the ANN `model.teacher`, or go on with its unfinished run, and measure it.

    Raises ConfigError, DataError, RunError, Interrupted (the state is saved) or TrainingError.
    """
    check_architecture(config.model.teacher)
    context = settle_precision("teacher", prepare(config, options.progress), options)
    return train_teacher_in(context, options)


def train_teacher_in(context: Context, options: Options) -> RunResult:
    """Do the same with the data and the device at hand."""
    task, drawn = teacher_task(context), random_state()
    context = settle_batch_size(task, "teacher", context, options)
    with open_for_training("teacher", context, options) as (run, stop):
        # Measuring a batch may draw random numbers; the training starts without them.
        restore_random_state(drawn)
        epochs = train(task, context, run, stop)
        return finish(run, context, task, epochs, None, stop)
