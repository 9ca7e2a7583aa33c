"""One training as a run: its folder is opened, the network trained, measured, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime

from tser_cli.config import Config, method_label
from tser_cli.data.loaders import build_train_loader
from tser_cli.data.transforms import check_augmentation
from tser_cli.energy import Labels
from tser_cli.engine.evaluation.kept_answers import keep_answers
from tser_cli.engine.evaluation.operation_counts import EnergyReport, Price, write_energy
from tser_cli.engine.evaluation.per_timestep import Evaluation, evaluate_split
from tser_cli.engine.runs import find_runs, model_files
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runs.result import RESULT, RunResult
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.context import Context, Options, make_check_stop
from tser_cli.engine.runtime.processes import Runtime
from tser_cli.engine.runtime.seeds import seed_everything, teacher_seed
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.engine.training.announcement import announcement
from tser_cli.engine.training.batch_size import largest_batch
from tser_cli.engine.training.compiling import compile_networks
from tser_cli.engine.training.data_parallel import share_gradients
from tser_cli.engine.training.energy_budget import EnergyBudget, make_control, profile_of
from tser_cli.engine.training.eval_energy import measure_eval_energy
from tser_cli.engine.training.job import TrainingJob
from tser_cli.engine.training.loop import fit
from tser_cli.engine.training.position import Row
from tser_cli.engine.training.resuming import take_run
from tser_cli.engine.training.task import Task, classification, distillation
from tser_cli.engine.training.teacher_logits import compute_teacher_logits, keeps_logits
from tser_cli.errors import Interrupted, NonFiniteError
from tser_cli.report import plots
from tser_cli.report.csv_files import per_timestep_csv
from tser_cli.report.progress import Progress


def teacher_task(context: Context) -> Task:
    """Build the ANN to train; its first weights are a function of the seed, unlike a student's.

    Raises ConfigError for an augmentation that could hide whole images.
    """
    config = context.config
    check_augmentation(config.augment, context.dataset.spec)
    seed_everything(teacher_seed(config.training.seed), config.training.deterministic)
    model = model_files.build(config.model.teacher, context.dataset.spec, config, spiking=False)
    return classification(model, config)


def student_task(context: Context, teacher: Loaded | None) -> Task:
    """Build the SNN to train and what it learns from; its first weights are those of the seed.

    Raises ConfigError where the method compares features that do not match, for an energy budget
    that can't be kept, for a cost profile that can't be used, and for an augmentation that could
    hide whole images.
    """
    config, spec = context.config, context.dataset.spec
    profile_of(config)  # a run ends with it
    check_augmentation(config.augment, spec)
    seed_everything(config.training.seed, config.training.deterministic)
    model = model_files.build(config.model.student, spec, config, spiking=True)
    if teacher is not None:
        context.runtime.place(teacher.model)
    return distillation(model, teacher.model if teacher else None, config, spec.image_shape)


def settle_batch_size(task: Task, kind: str, context: Context, options: Options) -> Context:
    """Return `context` with a batch size: its own, an unfinished run's, or the largest that fits.

    The task is left as it was: measuring what fits does not change its weights.
    """
    config = context.config
    if config.training.batch_size:
        return context

    def begun() -> int:
        if options.resume == "never":
            return 0
        must = options.resume == "must"
        like = find_runs.begun_like(options.runs_dir, kind, config, must)
        return like.training.batch_size if like else 0

    size = context.runtime.on_main(begun) or largest_batch(task, context)
    context.progress.say(f"batch size: {size} images over all processes; lr stays as it is")
    return replace(context, config=config.updated({"training.batch_size": size}))


@contextmanager
def open_for_training(
    kind: str, context: Context, options: Options
) -> Iterator[tuple[Run, StopRequest]]:
    """Hold a locked run folder, new or taken up again, and record how the block ended.

    Rank 0 chooses, locks and writes; the other processes are told.
    """
    runtime = context.runtime
    with ExitStack() as held:
        run, resumed = runtime.on_main(lambda: take_run(kind, context, options, held))
        context.progress.say(f"{'going on with' if resumed else 'run folder:'} {run.folder}")
        with recording_end(run, runtime, context.progress) as stop:
            yield run, stop


@contextmanager
def recording_end(run: Run, runtime: Runtime, progress: Progress) -> Iterator[StopRequest]:
    """Record in status.json how the block ended; give it the request to stop by a signal."""
    with StopRequest(progress.warn) as stop:
        began = time.monotonic()
        try:
            with runtime.naming_failed_process():
                yield stop
                if runtime.is_main:
                    _record_end(run, began)
        except BaseException as error:
            progress.end()
            if runtime.is_main:
                _record_failure(run, error)
            raise


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


def train(task: Task, context: Context, run: Run, stop: StopRequest) -> list[Row]:
    """Place the networks on the device and train; return the rows of metrics.csv."""
    config, runtime = context.config, context.runtime
    network = runtime.place(task.network)
    loader = build_train_loader(
        context.dataset, config, rank=runtime.rank, world=runtime.world, device=runtime.device
    )
    if keeps_logits(task, config, loader.deterministic_train, runtime.world):
        check_stop = make_check_stop(stop, runtime)
        task.teacher_logits_MK = compute_teacher_logits(task, context, check_stop)
    compile_networks(task, config, runtime.device, loader.images)
    shape = context.dataset.spec.image_shape
    task.network = share_gradients(network, runtime, shape, task.timesteps)
    context.progress.say(announcement(config, task.model.spiking, loader))
    validate = make_validation(task, context, stop) if config.data.validation_fraction else None
    steps = loader.steps_per_epoch * config.training.epochs
    control = make_control(task.budget, measure_eval_energy(task, context), steps)
    return fit(
        TrainingJob(task, loader, config, run, runtime, context.progress, stop, validate, control)
    )


def make_validation(task: Task, context: Context, stop: StopRequest) -> Callable[[], float]:
    """Return a function that measures the accuracy on the held-out training images."""
    return lambda: (
        evaluate_split(task.model, context, "validation", task.timesteps, stop=stop).accuracy
    )


def finish(
    run: Run,
    context: Context,
    task: Task,
    epochs: list[Row],
    teacher: Loaded | None,
    stop: StopRequest,
) -> RunResult:
    """Save the weights, measure on the test images in one pass, write the tables and the result.

    `epochs`: the rows of metrics.csv. All processes measure; rank 0 writes.
    """
    model = task.model
    evaluation = evaluate_split(
        model,
        context,
        "test",
        task.timesteps,
        teacher.model if teacher else None,
        stop,
        count=model.spiking,
    )
    if model.spiking:
        keep_answers(run, model, context, evaluation, stop)
    return context.runtime.on_main(
        lambda: _write_results(run, context, task, evaluation, epochs, teacher)
    )


def _write_results(
    run: Run,
    context: Context,
    task: Task,
    evaluation: Evaluation,
    epochs: list[Row],
    teacher: Loaded | None,
) -> RunResult:
    config, spec, spiking = context.config, context.dataset.spec, task.model.spiking
    name = config.model.student if spiking else config.model.teacher
    metadata = model_files.describe(name, spec, config, spiking=spiking)
    digest = model_files.write(run.model_file, task.model, metadata)
    labels = row_labels(run, config, "test", name, teacher.name if teacher else None)
    rows = evaluation.rows()
    per_timestep_csv(run.folder / "per_timestep.csv", rows, labels)
    figure = run.folder / "figures" / "per_timestep"
    plots.plot_per_timestep(figure, rows, run.name, str(labels["method"]))
    energy = None
    if evaluation.counts is not None:
        of_run = Labels(run.name, config.data.name, digest, config.training.precision)
        price = Price(profile_of(config), teacher)
        energy = write_energy(run.folder / "energy.csv", evaluation, of_run, price, context)
    result = _result(run, config, labels, evaluation, epochs, energy, task.budget)
    run.update_status(
        model=name,
        dataset=config.data.name,
        validation_fraction=config.data.validation_fraction,
        sha256=digest,
        **{RESULT: result.to_json()},
    )
    return result


def _result(
    run: Run,
    config: Config,
    labels: dict[str, str | None],
    evaluation: Evaluation,
    epochs: list[Row],
    energy: EnergyReport | None,
    budget: EnergyBudget | None,
) -> RunResult:
    held_out = [row["validation_accuracy"] for row in epochs]
    student = labels["student"] is not None
    return RunResult(
        folder=run.folder,
        kind=run.kind,
        model=str(labels["student"] if student else labels["teacher"]),
        dataset=config.data.name,
        method=str(labels["method"]),
        timesteps=evaluation.timesteps,
        images=evaluation.images,
        accuracy=evaluation.accuracy,
        teacher=labels["teacher"] if student else None,
        teacher_accuracy=evaluation.teacher_accuracy,
        best_validation_accuracy=max((x for x in held_out if x is not None), default=None),
        energy_pj=energy.energy_pj if energy else None,
        energy_budget_pj=budget.pj if budget else None,
        energy_budget_kept=energy.energy_pj <= budget.pj if energy and budget else None,
        ann_energy_pj=float(energy.document["totals"]["ann_energy_pj"]) if energy else None,
        seconds=sum(row["seconds"] for row in epochs),
        per_timestep=tuple(evaluation.rows()),
        against_ann=energy.document["against_ann"] if energy else None,
    )


def row_labels(
    run: Run, config: Config, split: str, name: str, teacher: str | None
) -> dict[str, str | None]:
    """Return the columns of per_timestep.csv that name the run."""
    student = run.kind == "student"
    return {
        "run": run.name,
        "dataset": config.data.name,
        "split": split,
        "method": method_label(config) if student else "ce",
        "teacher": teacher if student else name,
        "student": name if student else None,
    }
