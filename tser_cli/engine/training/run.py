"""One training as a run: its folder is opened, the network trained, measured, and recorded.

`commands/train.py` calls these steps in their order: a task, `open_for_training`, `train`,
`finish`. All processes take part in each; rank 0 alone writes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

import torch
from torch import Tensor

from tser_cli.base.errors import Interrupted, NonFiniteError
from tser_cli.base.progress import Progress
from tser_cli.data.loaders import Split, TrainLoader, build_eval_loader, build_train_loader
from tser_cli.data.transforms import check_augmentation
from tser_cli.energy.joules import mean_energy
from tser_cli.energy.table import Labels
from tser_cli.engine.evaluation.energy import energy_report
from tser_cli.engine.evaluation.evaluate import Evaluation, evaluate_split, keep_answers
from tser_cli.engine.runs import find, folder, networks
from tser_cli.engine.runs.opened import (
    Context,
    Options,
    keep_images,
    make_check_stop,
    say_average,
)
from tser_cli.engine.runs.record import RESULT, RunResult
from tser_cli.engine.runs.runtime import Runtime, seed_everything, teacher_seed
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.training.budget import (
    BudgetController,
    EnergyBudget,
    EnergyControl,
    profile_of,
)
from tser_cli.engine.training.loop import fit
from tser_cli.engine.training.optimizer import lr_factor, share_gradients, share_statistics
from tser_cli.engine.training.settle import compile_networks
from tser_cli.engine.training.state import Row, TrainingJob
from tser_cli.engine.training.task import Task, classification, distillation, teach
from tser_cli.report import figures
from tser_cli.report.csv_files import per_timestep_csv
from tser_cli.report.words import counted
from tser_cli.settings.config import EPOCHS, Config, method_label

BATCH = 256  # of the pass that computes the teacher's logits
MEASURED = 512  # images whose energy in eval mode is compared with that in training


def teacher_task(context: Context) -> Task:
    """Build the ANN to train; its first weights are a function of the seed, unlike a student's.

    Raises ConfigError for an augmentation that could hide whole images.
    """
    config = context.config
    check_augmentation(config.augment, context.dataset.spec)
    seed_everything(teacher_seed(config.training.seed), config.training.deterministic)
    model = networks.build(config.model.teacher, context.dataset.spec, config, spiking=False)
    return classification(model, config)


def student_task(context: Context, teacher: networks.Loaded | None) -> Task:
    """Build the SNN to train and what it learns from; its first weights are those of the seed.

    Raises ConfigError where the method compares features that do not match, for an energy budget
    that can't be kept, for a cost profile that can't be used, and for an augmentation that could
    hide whole images.
    """
    config, spec = context.config, context.dataset.spec
    profile_of(config)  # the run ends with it: one that can't be used is an error now
    check_augmentation(config.augment, spec)
    seed_everything(config.training.seed, config.training.deterministic)
    model = networks.build(config.model.student, spec, config, spiking=True)
    if teacher is not None:
        # first, since folding makes a copy: that has to be on the device too
        context.runtime.place(teacher.model)
    return distillation(model, teacher.model if teacher else None, config, spec.sample_shape)


@contextmanager
def open_for_training(
    kind: str, context: Context, options: Options
) -> Iterator[tuple[folder.Run, StopRequest]]:
    """Hold a locked run folder, new or resumed, and record how the block ended.

    Rank 0 chooses, locks and writes; the other processes learn of it.
    """
    runtime = context.runtime
    with ExitStack() as held:
        run, resumed = runtime.on_main(lambda: take_run(kind, context, options, held))
        context.progress.say(f"{'resuming' if resumed else 'run folder:'} {run.folder}")
        with recording_end(run, runtime, context.progress) as stop:
            yield run, stop


def take_run(
    kind: str, context: Context, options: Options, held: ExitStack
) -> tuple[folder.Run, bool]:
    """Return the run to work on, locked until `held` closes, and whether it was begun before.

    Raises ConfigError or RunError where `--resume must` has nothing to resume.
    """
    found, must, parent = None, options.resume == "must", options.parent
    # The lock comes before anything is changed: another process may be at work in the folder.
    if options.resume != "never":
        found = find.find_unfinished(options.runs_dir, kind, context.config, must, parent)
    run = found or folder.create(options.runs_dir, kind, context.config, parent=parent)
    held.enter_context(run.lock())
    run.remove_leftovers()
    keep_images(run, context)
    if found is not None:
        warning = other_schedule(run, context.config)
        if warning:
            context.progress.warn(warning)
        # It may have other workers, say, than it began with: the file says what holds.
        run.write_settings(context.config)
    run.update_status(state="running", why="")
    now = {
        "command": sys.argv,
        "device": str(context.runtime.device),
        "processes": context.runtime.world,
        "threads": torch.get_num_threads(),  # the order of sums, and so their last bits
    }
    at = datetime.now().astimezone().isoformat(timespec="seconds")
    before = run.environment().get("commands")  # that have worked on the run, oldest first
    commands = [*(before if isinstance(before, list) else []), {"at": at, **now}]
    run.update_environment(**now, commands=commands)
    return run, found is not None


def other_schedule(run: folder.Run, after: Config) -> str:
    """Say what differs where `run` is resumed with another number of epochs; "" where nothing does.

    Only `--resume must` resumes such a run, unless its learning rate knows no end.
    """
    before, epoch = run.config(), int(run.status().get("epoch", 0))
    old, new = before.training.epochs, after.training.epochs
    if old == new or after.policy(EPOCHS).resume:
        return ""
    # The factor at the beginning of an epoch does not depend on the steps that it has.
    lrs = [
        settings.optimizer.lr
        * lr_factor(epoch * 1000, 1000, settings.training.epochs, settings.schedule)
        for settings in (before, after)
    ]
    return (
        f"--resume must: {old} epochs become {new}, so that this is another run than either. After "
        f"{epoch} epochs the {after.schedule.name} learning rate continues at {lrs[1]:.4g} instead "
        f"of {lrs[0]:.4g}, and ends with epoch {new}"
    )


@contextmanager
def recording_end(run: folder.Run, runtime: Runtime, progress: Progress) -> Iterator[StopRequest]:
    """Record in status.json how the block ended; give it the request to stop by a signal."""
    with StopRequest(progress.warn) as stop:
        began = time.monotonic()
        try:
            with runtime.naming_failed_process():
                yield stop
                if runtime.is_main:
                    before = float(run.environment().get("wall_seconds", 0.0))
                    run.update_environment(wall_seconds=before + time.monotonic() - began)
                    # "finished" comes last: nobody resumes such a run, to clear away what a kill
                    # between the two would leave
                    run.update_status(state="finished", finished=folder.now())
        except BaseException as error:
            progress.end()
            if runtime.is_main:
                interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
                try:
                    run.update_status(
                        state="stopped" if interrupted else "failed",
                        why=str(error) or type(error).__name__,
                        # to resume it would lead to the same loss: from the same state, by the
                        # same images
                        resumable=not isinstance(error, NonFiniteError),
                    )
                except Exception as second:
                    # The first error is the one to report; a full disk, say, causes both.
                    error.add_note(f"status.json could not be written either: {second}")
            raise


def train(task: Task, context: Context, run: folder.Run, stop: StopRequest) -> list[Row]:
    """Place the networks on the device and train; return the rows of metrics.csv."""
    config, runtime = context.config, context.runtime
    network = runtime.place(task.network)
    loader = build_train_loader(
        context.dataset, config, rank=runtime.rank, world=runtime.world, device=runtime.device
    )
    if keeps_logits(task, config, loader.deterministic_train, runtime.world):
        check_stop = make_check_stop(stop, runtime)
        task.teacher_logits_MK = compute_teacher_logits(task, context, check_stop)
    # DDP wraps what is compiled, and after the teacher's logits: their batches have another size,
    # for which the teacher would be compiled once more.
    compile_networks(task, config, runtime.device)
    shape = context.dataset.spec.sample_shape
    task.network = share_gradients(network, runtime, shape, task.timesteps)
    context.progress.say(announcement(config, task.model.spiking, loader))
    for note in task.model.notes():
        context.progress.say(note)
    job = TrainingJob(task, loader, config, run, runtime, context.progress, stop)
    if config.data.validation_fraction:
        job.validate = lambda: (
            evaluate_split(task.model, context, "validation", task.timesteps, stop=stop).accuracy
        )
    if task.budget is not None:
        steps = loader.steps_per_epoch * config.training.epochs
        controller = BudgetController(task.budget.pj, steps)
        measure = measure_eval_energy(task, context)

        def measure_kept() -> float:
            # it is the network that is kept that has to keep the budget
            with job.kept_weights():
                return measure()

        job.control = EnergyControl(controller, measure_kept)
    return fit(job)


def finish(
    run: folder.Run,
    context: Context,
    task: Task,
    epochs: list[Row],
    teacher: networks.Loaded | None,
    stop: StopRequest,
) -> RunResult:
    """Save the weights, measure on the test images in one pass, write the tables and the result.

    `epochs`: the rows of metrics.csv. All processes measure; rank 0 writes.
    """
    model, taught = task.model, teacher.model if teacher else None
    say_average(context)
    # One pass gives accuracy, energy and each image's answers: a second one would take as long.
    evaluation = evaluate_split(
        model, context, "test", task.timesteps, taught, stop, count=model.spiking
    )
    if model.spiking:
        keep_answers(run, model, context, evaluation, stop)
    return context.runtime.on_main(
        lambda: _write_results(run, context, task, evaluation, epochs, teacher)
    )


def _write_results(
    run: folder.Run,
    context: Context,
    task: Task,
    evaluation: Evaluation,
    epochs: list[Row],
    teacher: networks.Loaded | None,
) -> RunResult:
    # The weights come first: a run that ends here can still be measured by hand. The result comes
    # last, so that a run that shows one has all the files that it speaks of.
    run.check_place()
    config, spiking = context.config, task.model.spiking
    name = config.model.student if spiking else config.model.teacher
    digest = networks.write(run.model_file, task.model, name, context.dataset.spec, config)
    labels = row_labels(run, config, "test", name, teacher.name if teacher else None)
    rows = evaluation.rows()
    per_timestep_csv(run.folder / "per_timestep.csv", rows, labels)
    steps = [figures.StepAccuracy.of_row(row) for row in rows]
    drawn = figures.accuracy(steps, rows[-1]["teacher_accuracy"], str(labels["method"]), run.name)
    drawn.save(run.folder / "figures" / "per_timestep")
    of_run = Labels(run.name, config.data.name, digest, config.training.precision)
    energy = write_energy(run, config, evaluation, of_run, task.budget, context, teacher)
    held_out = [row["validation_accuracy"] for row in epochs]
    result = RunResult(
        folder=run.folder,
        kind=run.kind,
        model=name,
        dataset=config.data.name,
        method=str(labels["method"]),
        timesteps=evaluation.timesteps,
        images=evaluation.images,
        accuracy=evaluation.accuracy,
        teacher=labels["teacher"] if spiking else None,
        teacher_accuracy=evaluation.teacher_accuracy,
        best_validation_accuracy=max((x for x in held_out if x is not None), default=None),
        seconds=sum(row["seconds"] for row in epochs),
        per_timestep=tuple(rows),
        events=context.dataset.facts.get("events"),
        teacher_train_accuracy=epochs[-1].get("teacher_train_accuracy") if epochs else None,
        **energy,
    )
    run.update_status(
        model=name,
        dataset=config.data.name,
        validation_fraction=config.data.validation_fraction,
        sha256=digest,
        **{RESULT: result.to_json()},
    )
    return result


def write_energy(
    run: folder.Run,
    config: Config,
    evaluation: Evaluation,
    labels: Labels,
    budget: EnergyBudget | None,
    context: Context | None = None,
    teacher: networks.Loaded | None = None,
) -> dict[str, Any]:
    """Price a counted pass, write the run's energy.csv, and return what its result says of it.

    Nothing is written of a pass that was not counted. `context`, `teacher`: as in `energy_report`.
    """
    if evaluation.counts is None:
        return {"energy_pj": None, "ann_energy_pj": None}
    report = energy_report(evaluation, labels, profile_of(config), context, teacher=teacher)
    report.write(run.folder / "energy.csv")
    found = {
        "energy_pj": report.energy_pj,
        "ann_energy_pj": float(report.document["totals"]["ann_energy_pj"]),
        "against_ann": report.document["against_ann"],
    }
    if budget is not None:
        found["energy_budget_pj"] = budget.pj
        found["energy_budget_kept"] = report.energy_pj <= budget.pj
    return found


def row_labels(
    run: folder.Run, config: Config, split: str, name: str, teacher: str | None
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


def announcement(config: Config, spiking: bool, loader: TrainLoader) -> str:
    """Return what is trained, by what, for how long, and how to stop."""
    model, training, frames = config.model, config.training, config.data.frames
    what = f"{model.teacher}, an ANN to teach from"
    what += f" that sees the mean of {counted(frames, 'frame')}" if frames else ""
    if spiking:
        steps = counted(model.timesteps, "time step") + (", a frame each" if frames else "")
        what = f"{model.student}, spiking, with {steps}, by {method_label(config)}"
    return (
        f"training {what}: {counted(training.epochs, 'epoch')} of "
        f"{counted(loader.steps_per_epoch, 'step')} on "
        f"{loader.images:,} images of {config.data.name}, then a test on images kept apart. "
        "Ctrl-C stops it, and the same command resumes it"
    )


def keeps_logits(task: Task, config: Config, deterministic: bool, world: int) -> bool:
    """Return whether to compute the teacher's logits once: where images never change, and it pays.

    Every process computes all of them, so that it would not pay with more processes than epochs.
    """
    return (
        config.performance.keep_teacher_logits
        and task.teacher is not None
        and task.teacher_tap is None
        and deterministic
        and config.training.epochs > world
    )


@torch.no_grad()
def compute_teacher_logits(task: Task, context: Context, check_stop: Callable[[], None]) -> Tensor:
    """Return the teacher's logits of all training images, [M, K] by index; zeros for others.

    The order and the batches never change, so that a resumed run has the same bits. `check_stop` is
    called after each batch, and may raise.
    """
    assert task.teacher is not None
    runtime, dataset = context.runtime, context.dataset
    teacher_logits_MK = torch.zeros(
        len(dataset.train), dataset.spec.num_classes, device=runtime.device
    )
    for batch in build_eval_loader(dataset, "train", context.config, batch_size=BATCH):
        with runtime.autocast():
            logits_NK = teach(task.teacher, runtime.images(batch.images_NCHW))
        teacher_logits_MK[batch.indices_N.to(runtime.device)] = logits_NK
        check_stop()
    return teacher_logits_MK


def measure_eval_energy(task: Task, context: Context) -> Callable[[], float]:
    """Return a function that counts and prices some held-out images, or else training images: pJ.

    Every process measures, and rank 0's count of all of them is what each returns.
    """
    split: Split = "validation" if context.config.data.validation_fraction else "train"

    def measure() -> float:
        budget = task.budget
        assert budget is not None, "only a budget asks for it"
        # eval mode goes by the running statistics, which each process has of its own part alone
        share_statistics(task.network, context.runtime)
        steps = task.timesteps
        found = evaluate_split(task.model, context, split, steps, count=True, images=MEASURED)
        assert found.counts is not None, "a counted pass"
        return mean_energy(found.counts, budget.profile)

    return measure
