"""Distil a spiking student from a teacher, or train an ANN to learn from, and measure it.

Each is a run of its own, in a folder of its own. What can't work is found before there is a folder.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from tser_cli.base.files import hold_lock, make_folder
from tser_cli.engine.runs import networks, teachers
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.runs.record import RunResult
from tser_cli.engine.runs.runtime import random_state, restore_random_state
from tser_cli.engine.training import run as training
from tser_cli.engine.training.settle import settle, settle_batch_size
from tser_cli.report.verdict import verdict
from tser_cli.settings import registry
from tser_cli.settings.config import Config

TURN = 60.0  # seconds; well below the time after which the other processes give up


def distill(config: Config, options: Options) -> RunResult:
    """Distil the student from its teacher, which is trained first where there is none; measure it.

    Raises ConfigError, DataError, CheckpointError, RunError, Interrupted (the state is saved) or
    TrainingError.
    """
    context = settle("student", config, options)
    teacher = provide_teacher(context, options)
    # What does not fit together is an error here, before there is a run folder.
    task, drawn = training.student_task(context, teacher), random_state()
    context = settle_batch_size(task, "student", context, options)
    with training.open_for_training("student", context, options) as (run, stop):
        if teacher is not None:
            kept = teachers.keep_teacher(run, context, teacher)
            if kept.sha256 != teacher.sha256:  # a resumed run learns from what it began with
                teacher, task = kept, training.student_task(context, kept)
        # Reading files and measuring a batch draw random numbers; the training starts without them.
        restore_random_state(drawn)
        epochs = training.train(task, context, run, stop)
        return training.finish(run, context, task, epochs, teacher, stop)


def train_teacher(config: Config, options: Options) -> RunResult:
    """Train the ANN `model.teacher`, or resume its unfinished run, and measure it.

    Raises ConfigError, DataError, RunError, Interrupted (the state is saved) or TrainingError.
    """
    teachers.check_architecture(config.model.teacher)
    return train_teacher_in(settle("teacher", config, options), options)


def train_teacher_in(context: Context, options: Options) -> RunResult:
    """Do the same with the data and the device at hand."""
    task, drawn = training.teacher_task(context), random_state()
    context = settle_batch_size(task, "teacher", context, options)
    with training.open_for_training("teacher", context, options) as (run, stop):
        restore_random_state(drawn)  # as in `distill`
        epochs = training.train(task, context, run, stop)
        return training.finish(run, context, task, epochs, None, stop)


def provide_teacher(context: Context, options: Options) -> networks.Loaded | None:
    """Return the student's teacher, checked to fit; None where the method has no use for one.

    Where there is no such teacher yet, one is trained as a run of its own.
    """
    config, runtime = context.config, context.runtime
    if not registry.METHODS[config.method.name].needs_teacher:
        return None
    loaded = runtime.on_main(lambda: teachers.find_fitting(context, options.runs_dir))
    if loaded is None:
        # What the student and the method are not fit for is an error now, not after that training.
        untrained = networks.untrained(config.model.teacher, context.dataset.spec, config)
        training.student_task(context, untrained)
        loaded = _train_once(context, options)
    context.progress.say(f"teacher: {loaded.name} from {loaded.source}")
    networks.freeze(loaded.model)
    return loaded


def _train_once(context: Context, options: Options) -> networks.Loaded:
    """Train the teacher, unless another process is doing so: then wait for it, and use that."""
    runtime, config, spec = context.runtime, context.config, context.dataset.spec
    with ExitStack() as held:
        _hold_training(context, options, held)
        loaded = runtime.on_main(lambda: teachers.find_fitting(context, options.runs_dir))
        if loaded is not None:
            return loaded
        context.progress.say(
            f"no finished {config.model.teacher} teacher of {config.data.name} under "
            f"{options.runs_dir}: training one first"
        )
        # "auto": an interrupted teacher of an earlier command is resumed, whatever the student is.
        result = train_teacher_in(
            replace(context, config=teachers.teacher_config(config)),
            replace(options, resume="auto"),
        )
        context.progress.say(f"teacher: {verdict(result.per_timestep[-1]).line}")
        path = Run(Path(result.folder)).model_file
        return runtime.on_main(lambda: teachers.fitting_teacher(networks.read(path, spec), spec))


def _hold_training(context: Context, options: Options, held: ExitStack) -> None:
    """Hold the lock of those who train this teacher until `held` closes. Raises RunError.

    Rank 0 holds it. The other processes hear of it in turns, since they give up on a process that
    says nothing for `runtime.PATIENCE`.
    """
    config, runtime = context.config, context.runtime
    path = options.runs_dir / f".teacher-{config.data.name}-{config.model.teacher}.lock"

    def acquired(seconds: float) -> bool:
        make_folder(path.parent)
        try:
            held.enter_context(hold_lock(path, seconds))
        except Timeout:
            return False
        return True

    if runtime.on_main(lambda: acquired(0)):
        return
    context.progress.say(
        f"another process trains a {config.model.teacher} teacher of {config.data.name} "
        f"under {options.runs_dir}: waiting for it"
    )
    while not runtime.on_main(lambda: acquired(TURN)):
        pass
