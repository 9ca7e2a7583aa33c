"""Train an ANN to learn from, in a run folder of its own.

Distil a spiking student from a teacher, and measure it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from tser_cli.base.files import make_folder, write_error
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.networks import Loaded, freeze
from tser_cli.engine.runs.opened import Context, Options, prepare
from tser_cli.engine.runs.record import RunResult
from tser_cli.engine.runs.runtime import random_state, restore_random_state
from tser_cli.engine.runs.teachers import (
    check_architecture,
    find_fitting,
    fitting_teacher,
    keep_teacher,
    teacher_config,
)
from tser_cli.engine.training.run import (
    finish,
    open_for_training,
    settle_batch_size,
    student_task,
    teacher_task,
    train,
)
from tser_cli.engine.training.settle import settle_precision
from tser_cli.settings import registry
from tser_cli.settings.config import Config


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


TURN = 60.0  # seconds


def distill(config: Config, options: Options) -> RunResult:
    """Distil the student from its teacher, which is trained first where there is none; measure it.

    Raises ConfigError, DataError, CheckpointError, RunError, Interrupted (the state is saved) or
    TrainingError.
    """
    context = settle_precision("student", prepare(config, options.progress), options)
    teacher = provide_teacher(context, options)
    # What does not fit together is refused here, before there is a run folder.
    task, drawn = student_task(context, teacher), random_state()
    context = settle_batch_size(task, "student", context, options)
    with open_for_training("student", context, options) as (run, stop):
        if teacher is not None:
            kept = keep_teacher(run, context, teacher)
            if kept.sha256 != teacher.sha256:
                teacher, task = kept, student_task(context, kept)
        # Reading files and measuring a batch draw random numbers; the training starts without them.
        restore_random_state(drawn)
        epochs = train(task, context, run, stop)
        return finish(run, context, task, epochs, teacher, stop)


def provide_teacher(context: Context, options: Options) -> Loaded | None:
    """Return the student's teacher, checked to fit; None where the method has no use for one.

    Where there is no such teacher yet, one is trained as a run of its own.
    """
    config, runtime = context.config, context.runtime
    if not registry.METHODS[config.method.name].needs_teacher:
        return None
    loaded = runtime.on_main(lambda: find_fitting(context, options.runs_dir))
    if loaded is None:
        # What the student and the method are not fit for is told now, not after that training.
        untrained = networks.untrained(config.model.teacher, context.dataset.spec, config)
        student_task(context, untrained)
        loaded = _train_once(context, options)
    context.progress.say(f"teacher: {loaded.name} from {loaded.source}")
    freeze(loaded.model)
    return loaded


def _train_once(context: Context, options: Options) -> Loaded:
    """Train the teacher, unless another process is doing so: then wait for it, and take that."""
    runtime, wanted = context.runtime, context.config.model.teacher
    with ExitStack() as held:
        _hold_training(context, options, held)
        loaded = runtime.on_main(lambda: find_fitting(context, options.runs_dir))
        if loaded is not None:
            return loaded
        context.progress.say(
            f"no finished {wanted} teacher of {context.config.data.name} under "
            f"{options.runs_dir}: training one first"
        )
        return _train_first(context, options)


def _hold_training(context: Context, options: Options, held: ExitStack) -> None:
    """Hold the lock of those who train this teacher until `held` closes. Raises RunError.

    Rank 0 holds it. The other processes hear of it in turns, since they give up on a process that
    says nothing for `processes.PATIENCE`.
    """
    config, runtime = context.config, context.runtime
    path = options.runs_dir / f".teacher-{config.data.name}-{config.model.teacher}.lock"
    if runtime.on_main(lambda: _acquired(path, 0, held)):
        return
    context.progress.say(
        f"another process trains a {config.model.teacher} teacher of {config.data.name} "
        f"under {options.runs_dir}: waiting for it"
    )
    while not runtime.on_main(lambda: _acquired(path, TURN, held)):
        pass


def _acquired(path: Path, seconds: float, held: ExitStack) -> bool:
    """Return whether the lock was free within `seconds`; then it is held until `held` closes."""
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    except OSError as error:
        raise write_error(path, error) from error
    held.callback(lock.release)
    return True


def _train_first(context: Context, options: Options) -> Loaded:
    teacher_context = replace(context, config=teacher_config(context.config))
    # An interrupted teacher of an earlier command is gone on with.
    result = train_teacher_in(teacher_context, replace(options, resume="auto"))
    path, spec = Run(Path(result.folder)).model_file, context.dataset.spec
    return context.runtime.on_main(lambda: fitting_teacher(networks.read(path, spec), spec))
