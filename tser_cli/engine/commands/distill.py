"""The verbs: train a teacher, distil a student, evaluate a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime

import tomli_w

from tser_cli import registry
from tser_cli.config import Config
from tser_cli.data.loaders import build_eval_loader, build_train_loader
from tser_cli.energy import DEFAULT_PROFILE, Labels, load_profile
from tser_cli.engine.evaluation.operation_counts import Price, measure, write_energy
from tser_cli.engine.evaluation.per_timestep import Evaluation, evaluate
from tser_cli.engine.runs import model_files, run_folder
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runs.split_list import keep_test_images
from tser_cli.engine.runtime.context import Context, Options, evaluate_split, make_heed, prepare
from tser_cli.engine.runtime.processes import seed_everything
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.engine.teachers import find
from tser_cli.engine.teachers.fits import find_fitting, fitting, keep_teacher
from tser_cli.engine.training.batch_size import largest_batch
from tser_cli.engine.training.compiling import compile_networks, keeps_logits, teach_all
from tser_cli.engine.training.data_parallel import share_gradients
from tser_cli.engine.training.loop import Fit, fit
from tser_cli.engine.training.task import Task, classification, distillation, freeze
from tser_cli.errors import Interrupted, NonFiniteError
from tser_cli.files import write_text
from tser_cli.report import console, plots
from tser_cli.report.csv_files import per_timestep_csv

NEXT = ("tser evaluate --per-timestep", "tser energy report.csv")


def train_teacher(config: Config, options: Options) -> Run:
    """Train the ANN `model.teacher`, or go on with it; evaluate it; returns the finished run."""
    find.check_architecture(config.model.teacher)
    context = prepare(config)
    run, evaluation = train_teacher_in(context, options)
    given = f" --data-dir {config.data.dir}" if config.data.dir else ""
    told = f"tser distill --teacher {run.folder} --dataset {config.data.name}{given} -T 2"
    present(run, context, evaluation, [told])
    return run


def train_teacher_in(context: Context, options: Options) -> tuple[Run, Evaluation]:
    """`train_teacher` with the data and the device at hand."""
    context = settle_batch(teacher_task(context), "teacher", context, options)
    config, name = context.config, context.config.model.teacher
    with open_for_training("teacher", context, options) as (run, stop):
        task = teacher_task(context)
        train(task, context, run, stop)
        metadata = model_files.describe(name, context.dataset.spec, config, spiking=False)
        evaluation = finish(run, context, task, name, metadata, None, stop)
    return run, evaluation


def distill(config: Config, options: Options) -> Run:
    """Distil the student from its teacher (trained first where there is none), and evaluate it."""
    context, name = prepare(config), config.model.student
    teacher = provide_teacher(context, options)
    # what does not fit together is refused here, before there is a run folder
    context = settle_batch(student_task(context, teacher), "student", context, options)
    config = context.config
    with open_for_training("student", context, options) as (run, stop):
        if teacher is not None:
            teacher = keep_teacher(run, context, teacher)
        task = student_task(context, teacher)
        train(task, context, run, stop)
        metadata = model_files.describe(name, context.dataset.spec, config, spiking=True)
        evaluation = finish(run, context, task, name, metadata, teacher, stop)
    given = f" --runs-dir {options.runs_dir}" if options.runs_dir != Options().runs_dir else ""
    present(run, context, evaluation, [f"{command}{given}" for command in NEXT])
    return run


def teacher_task(context: Context) -> Task:
    """The ANN to train: its weights are a function of the seed."""
    config = context.config
    seed_everything(config.training.seed, config.training.deterministic)
    name = config.model.teacher
    return classification(
        model_files.build(name, context.dataset.spec, config, spiking=False), config
    )


def student_task(context: Context, teacher: Loaded | None) -> Task:
    """The SNN to train and what it learns from: its weights are a function of the seed.

    Raises ConfigError where the method compares features that do not match.
    """
    config, spec = context.config, context.dataset.spec
    seed_everything(config.training.seed, config.training.deterministic)
    model = model_files.build(config.model.student, spec, config, spiking=True)
    if teacher is not None:
        context.runtime.place(teacher.model)
    return distillation(model, teacher.model if teacher else None, config, spec.image_shape)


def settle_batch(task: Task, kind: str, context: Context, options: Options) -> Context:
    """`context` with a batch size: its own, an unfinished run's, or the largest that fits."""
    config = context.config
    if config.training.batch_size:
        return context

    def begun() -> int:
        unfinished = options.resume != "never"
        return run_folder.begun_batch_size(options.runs_dir, kind, config) if unfinished else 0

    size = context.runtime.on_main(begun) or largest_batch(task, context)
    context.progress.say(f"batch size: {size} images over all processes; lr stays as it is")
    return replace(context, config=config.updated({"training.batch_size": size}))


def provide_teacher(context: Context, options: Options) -> Loaded | None:
    """The student's teacher, checked to fit; None where the method has no use for one."""
    config, spec = context.config, context.dataset.spec
    if not registry.METHODS[config.method.name].needs_teacher:
        return None
    runtime = context.runtime
    loaded = runtime.on_main(lambda: find_fitting(context, options.runs_dir))
    if loaded is None:
        context.progress.say(
            f"no finished {config.model.teacher} teacher of {config.data.name} under "
            f"{options.runs_dir}: training one first"
        )
        # A run of its own, that goes on where an interrupted one stopped.
        settings = find.teacher_config(config)
        teacher_context = Context(settings, context.dataset, context.runtime, context.progress)
        run, _ = train_teacher_in(teacher_context, Options(options.runs_dir, "auto"))
        loaded = runtime.on_main(lambda: fitting(model_files.read(run.model_file, spec), context))
    context.progress.say(f"teacher: {loaded.name} from {loaded.source}")
    freeze(loaded.model)
    return loaded


@contextmanager
def open_for_training(
    kind: str, context: Context, options: Options
) -> Iterator[tuple[Run, StopRequest]]:
    """A locked run folder, new or taken up again; its status.json tells how the block ended.

    The first process chooses, locks and writes; the others are told.
    """
    runtime = context.runtime
    with ExitStack() as held:
        run, resumed = runtime.on_main(lambda: _take(kind, context, options, held))
        context.progress.say(f"{'going on with' if resumed else 'run folder:'} {run.folder}")
        stop = held.enter_context(StopRequest(context.progress.warn))
        began = time.monotonic()
        try:
            with runtime.accountable():
                yield run, stop
                if runtime.is_main:
                    _record_end(run, began)
        except BaseException as error:
            context.progress.end()
            if runtime.is_main:
                _record_failure(run, error)
            raise


def _take(kind: str, context: Context, options: Options, held: ExitStack) -> tuple[Run, bool]:
    """The run to work on, locked until `held` closes, and whether it was begun before."""
    found = None
    if options.resume != "never":
        must = options.resume == "must"
        found = run_folder.find_unfinished(options.runs_dir, kind, context.config, must)
    run = found or run_folder.create(options.runs_dir, kind, context.config)
    held.enter_context(run.lock())
    run.remove_leftovers()
    keep_test_images(run, context)
    run.update_status(state="running", why="")
    # A resumed run may have other epochs or workers than it began with: the file says what holds.
    write_text(run.folder / "config.toml", tomli_w.dumps(context.config.model_dump(mode="json")))
    where = {"device": str(context.runtime.device), "processes": context.runtime.world}
    run.update_environment(**where, command=sys.argv)
    return run, found is not None


def _record_end(run: Run, began: float) -> None:
    # "finished" comes last: nobody takes such a run up again, to clear away what a kill left
    before = float(run.environment().get("wall_seconds", 0.0))
    run.update_environment(wall_seconds=before + time.monotonic() - began)
    now = datetime.now().astimezone().isoformat(timespec="microseconds")
    run.update_status(state="finished", finished=now)


def _record_failure(run: Run, error: BaseException) -> None:
    interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
    try:
        run.update_status(
            state="stopped" if interrupted else "failed",
            why=str(error) or type(error).__name__,
            resumable=not isinstance(error, NonFiniteError),
        )
    except Exception as second:
        # The first error is the one to tell; the disk that refuses this note is often its cause.
        error.add_note(f"status.json could not be written either: {second}")


def train(task: Task, context: Context, run: Run, stop: StopRequest) -> None:
    """Place the networks on the device and fit."""
    config, runtime = context.config, context.runtime
    shape = context.dataset.spec.image_shape
    network = runtime.place(task.network)
    loader = build_train_loader(
        context.dataset,
        config,
        rank=runtime.rank,
        world=runtime.world,
        device=runtime.device,
    )
    if keeps_logits(task, config, loader.deterministic_train, runtime.world):
        task.taught_MK = teach_all(task, context, make_heed(stop, runtime))
    compile_networks(task, config, runtime.device, loader.images)
    task.network = share_gradients(network, runtime, shape, task.timesteps)
    validate = make_validation(task, context, stop) if config.data.validation_fraction else None
    fit(Fit(task, loader, config, run, runtime, context.progress, stop, validate))


def make_validation(task: Task, context: Context, stop: StopRequest) -> Callable[[], float]:
    """A function that gives the accuracy on the held-out part of the training images."""
    runtime = context.runtime
    loader = build_eval_loader(
        context.dataset, "validation", context.config, rank=runtime.rank, world=runtime.world
    )
    heed = make_heed(stop, runtime)
    return lambda: evaluate(task.model, loader, runtime, task.timesteps, None, heed).accuracy


def finish(
    run: Run,
    context: Context,
    task: Task,
    name: str,
    metadata: dict[str, str],
    teacher: Loaded | None,
    stop: StopRequest,
) -> Evaluation:
    """Save the weights, evaluate on the test set, write the tables, note what came out."""
    config = context.config
    evaluation = evaluate_split(
        task.model, context, "test", task.timesteps, teacher.model if teacher else None, stop
    )
    if not context.runtime.is_main:
        return evaluation
    digest = model_files.write(run.model_file, task.model, metadata)
    labels = row_labels(run, config, "test", name, teacher.name if teacher else None)
    per_timestep_csv(run.folder / "per_timestep.csv", evaluation.rows(), labels)
    figure = run.folder / "figures" / "per_timestep.png"
    plots.plot_per_timestep(figure, evaluation.rows(), run.name)
    if task.model.spiking:
        measured = measure(task.model, context, task.timesteps, heed=stop.check)
        of_run = Labels(run.name, config.data.name, digest, config.training.precision)
        price = Price(load_profile(DEFAULT_PROFILE), teacher)
        write_energy(run.folder / "energy.csv", measured, of_run, price, context)
    run.update_status(
        model=name,
        dataset=config.data.name,
        validation_fraction=config.data.validation_fraction,
        accuracy=evaluation.accuracy,
        images=evaluation.images,
        teacher_accuracy=evaluation.teacher_accuracy,
        sha256=digest,
    )
    return evaluation


def present(run: Run, context: Context, evaluation: Evaluation, commands: list[str]) -> None:
    """Show the table, where the run folder is, and what to type next."""
    if not context.runtime.is_main:
        return
    out = console.output()
    out.print(console.per_timestep_table(run.name, evaluation.rows()))
    out.print(console.summary(evaluation.rows(), "test"), soft_wrap=True)
    out.print(console.next_steps(run.folder, commands), soft_wrap=True)


def row_labels(
    run: Run, config: Config, split: str, name: str, teacher: str | None
) -> dict[str, str | None]:
    """The columns of per_timestep.csv that name the run."""
    student = run.kind == "student"
    return {
        "run": run.name,
        "dataset": config.data.name,
        "split": split,
        "method": config.method.name if student else "ce",
        "teacher": teacher if student else name,
        "student": name if student else None,
    }
