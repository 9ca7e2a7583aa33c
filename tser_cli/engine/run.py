"""The verbs: train a teacher, distil a student, evaluate a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from tser_cli import registry
from tser_cli.config import Config
from tser_cli.data.loaders import build_eval_loader, build_train_loader
from tser_cli.energy import DEFAULT_PROFILE, Labels, load_profile
from tser_cli.engine import networks, runs, teachers
from tser_cli.engine.counting import Price, measure, write_energy
from tser_cli.engine.distributed import seed_everything
from tser_cli.engine.evaluate import Evaluation, evaluate
from tser_cli.engine.networks import Loaded
from tser_cli.engine.runs import Run
from tser_cli.engine.signals import StopRequest
from tser_cli.engine.tasks import Task, check_teacher, classification, distillation, freeze
from tser_cli.engine.train import Fit, fit
from tser_cli.engine.workplace import Options, Workplace, evaluate_split, prepare
from tser_cli.errors import Interrupted, NonFiniteError
from tser_cli.report import console, plots
from tser_cli.report.tables import per_timestep_csv

NEXT = ["tser evaluate --per-timestep", "tser energy report.csv"]


def train_teacher(config: Config, options: Options) -> Run:
    """Train the ANN `model.teacher`, or go on with it; evaluate it; returns the finished run."""
    teachers.check_architecture(config.model.teacher)
    place = prepare(config)
    run, evaluation = train_teacher_in(place, options)
    present(run, place, evaluation, [f"tser distill --teacher {run.folder} -T 2"])
    return run


def train_teacher_in(place: Workplace, options: Options) -> tuple[Run, Evaluation]:
    """`train_teacher` with the data and the device at hand."""
    config, name = place.config, place.config.model.teacher
    with open_for_training("teacher", place, options) as (run, stop):
        seed_everything(config.training.seed, config.training.deterministic)
        model = networks.build(name, place.dataset.spec, config, spiking=False)
        task = classification(model, config)
        train(task, place, run, stop)
        metadata = networks.describe(name, place.dataset.spec, config, spiking=False)
        evaluation = finish(run, place, task, name, metadata, None, stop)
    return run, evaluation


def distill(config: Config, options: Options) -> Run:
    """Distil the student from its teacher (trained first where there is none), and evaluate it."""
    place = prepare(config)
    teacher = provide_teacher(place, options)
    with open_for_training("student", place, options) as (run, stop):
        seed_everything(config.training.seed, config.training.deterministic)
        name = config.model.student
        model = networks.build(name, place.dataset.spec, config, spiking=True)
        if teacher is not None:
            place.runtime.place(teacher.model)
            described = {"source": teacher.source, "model": teacher.name, "sha256": teacher.sha256}
            run.update_environment(teacher=described)
        task = distillation(model, teacher.model if teacher else None, config)
        train(task, place, run, stop)
        metadata = networks.describe(name, place.dataset.spec, config, spiking=True)
        evaluation = finish(run, place, task, name, metadata, teacher, stop)
    present(run, place, evaluation, NEXT)
    return run


def provide_teacher(place: Workplace, options: Options) -> Loaded | None:
    """The student's teacher, checked to fit; None where the method has no use for one."""
    config, spec = place.config, place.dataset.spec
    if not registry.METHODS[config.method.name].needs_teacher:
        return None
    loaded = teachers.find_teacher(config, spec, options.runs_dir)
    if loaded is None:
        place.progress.say(
            f"no finished {config.model.teacher} teacher of {config.data.name} under "
            f"{options.runs_dir}: training one first"
        )
        # A run of its own, that goes on where an interrupted one stopped.
        settings = teachers.teacher_config(config)
        teacher_place = Workplace(settings, place.dataset, place.runtime, place.progress)
        run, _ = train_teacher_in(teacher_place, Options(options.runs_dir, "auto"))
        loaded = networks.read(run.model_file, spec)
    check_teacher(teachers.as_ann(loaded).model, spec.image_shape, spec.num_classes)
    place.progress.say(f"teacher: {loaded.name} from {loaded.source}")
    freeze(loaded.model)
    return loaded


@contextmanager
def open_for_training(
    kind: str, place: Workplace, options: Options
) -> Iterator[tuple[Run, StopRequest]]:
    """A locked run folder, new or taken up again; its status.json tells how the block ended."""
    run = None
    if options.resume != "never":
        must = options.resume == "must"
        run = runs.find_unfinished(options.runs_dir, kind, place.config, must)
    resumed = run is not None
    run = run or runs.create(options.runs_dir, kind, place.config)
    place.progress.say(f"{'going on with' if resumed else 'run folder:'} {run.folder}")
    with run.lock(), StopRequest(place.progress.warn) as stop:
        run.update_status(state="running", why="")
        began = time.monotonic()
        try:
            yield run, stop
        except BaseException as error:
            place.progress.end()
            _record_failure(run, error)
            raise
        run.update_environment(wall_seconds=time.monotonic() - began)


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


def train(task: Task, place: Workplace, run: Run, stop: StopRequest) -> None:
    """Place the networks on the device and fit."""
    config, runtime = place.config, place.runtime
    runtime.place(task.model)
    if runtime.world > 1:
        task.network = runtime.accelerator.prepare_model(task.model)
    loader = build_train_loader(place.dataset, config, rank=runtime.rank, world=runtime.world)
    validate = make_validation(task, place, stop) if config.data.validation_fraction else None
    fit(Fit(task, loader, config, run, runtime, place.progress, stop, validate))


def make_validation(task: Task, place: Workplace, stop: StopRequest) -> Callable[[], float]:
    """A function that gives the accuracy on the held-out part of the training images."""
    runtime = place.runtime
    loader = build_eval_loader(
        place.dataset, "validation", place.config, rank=runtime.rank, world=runtime.world
    )
    return lambda: evaluate(task.model, loader, runtime, task.timesteps).accuracy


def finish(
    run: Run,
    place: Workplace,
    task: Task,
    name: str,
    metadata: dict[str, str],
    teacher: Loaded | None,
    stop: StopRequest,
) -> Evaluation:
    """Save the weights, evaluate on the test set, write the tables, mark the run finished."""
    config = place.config
    evaluation = evaluate_split(
        task.model, place, "test", task.timesteps, teacher.model if teacher else None, stop
    )
    if not place.runtime.is_main:
        return evaluation
    digest = networks.write(run.model_file, task.model, metadata)
    labels = row_labels(run, config, "test", name, teacher.name if teacher else None)
    per_timestep_csv(run.folder / "per_timestep.csv", evaluation.rows(), labels)
    figure = run.folder / "figures" / "per_timestep.png"
    plots.plot_per_timestep(figure, evaluation.rows(), run.name)
    if task.model.spiking:
        measured = measure(task.model, place, task.timesteps)
        of_run = Labels(run.name, config.data.name, digest, config.training.precision)
        price = Price(load_profile(DEFAULT_PROFILE), teacher)
        write_energy(run.folder / "energy.csv", measured, of_run, price, place)
    run.update_status(
        state="finished",
        finished=datetime.now().astimezone().isoformat(timespec="microseconds"),
        model=name,
        dataset=config.data.name,
        validation_fraction=config.data.validation_fraction,
        accuracy=evaluation.accuracy,
        teacher_accuracy=evaluation.teacher_accuracy,
        sha256=digest,
    )
    return evaluation


def present(run: Run, place: Workplace, evaluation: Evaluation, commands: list[str]) -> None:
    """Show the table, where the run folder is, and what to type next."""
    if not place.runtime.is_main:
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
