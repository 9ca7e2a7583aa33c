"""The commands as functions for Python, also on your own networks and data loaders.

`from tser_cli import distill, evaluate, load_run`; see docs/library.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import ConfigError, TserError
from tser_cli.base.progress import Progress, Silent
from tser_cli.base.system import call_fault
from tser_cli.data.loaders import Batch
from tser_cli.energy.joules import mean_energy
from tser_cli.energy.neurons import copied, reset_states
from tser_cli.energy.table import Labels
from tser_cli.engine.commands.evaluate import EvaluateResult, evaluate_run
from tser_cli.engine.commands.train import distill as distill_run
from tser_cli.engine.evaluation.evaluate import Evaluation
from tser_cli.engine.evaluation.evaluate import evaluate as evaluate_steps
from tser_cli.engine.runs import folder, record, weights
from tser_cli.engine.runs.networks import state_problem
from tser_cli.engine.runs.opened import FinishedRun, Options, open_finished, select_run
from tser_cli.engine.runs.runtime import Runtime, make_runtime, seed_everything
from tser_cli.engine.training import budget, loop, settle, state
from tser_cli.engine.training.run import MEASURED, recording_end, write_energy
from tser_cli.engine.training.task import Task, distillation
from tser_cli.models.base import OwnNetwork
from tser_cli.report.csv_files import per_timestep_csv
from tser_cli.settings import plugins, recipe, registry
from tser_cli.settings.config import AUTO, Config, method_label
from tser_cli.settings.options import DistillRequest, EvaluateRequest, options_of
from tser_cli.settings.plugins import last_line

Settings = Mapping[str, Any]
OWN = "own"  # the data set's name in the folder of a run on a user's own data loader
# What a user's own networks and loaders decide themselves is in no recipe.
NOT_OWN = {"data", "augment", "model", "neuron"}
TRIED = 2  # images that own networks are tried on
# scripts on your own networks import tser_cli.config.NeuronConfig, as docs/library.md once showed
plugins.offer_old_modules()


def distill(
    teacher: str | Path = "resnet34", student: str = "resnet18", **options: Any
) -> record.RunResult:
    """Distil a spiking student by name, as `tser distill` does, and return what it measured.

    `teacher`: an architecture, a run folder or a model file; it is trained first where there is
    none. `options`: the others of `DistillRequest`, such as timesteps=4, dataset="cifar10",
    recipe="mine.toml" or settings={"training.epochs": 5}, which reaches any setting by its dotted
    key; progress hears messages and losses. Without them it is `tser` on digits with two time
    steps. Raises TserError: ConfigError, DataError, CheckpointError, RunError or TrainingError;
    Interrupted where a signal stopped it (the state is saved).
    """
    usual = {"timesteps": 2, "dataset": "digits", "method": "tser"}
    entry = registry.DATASETS.get(str(options.get("dataset")))
    if entry is not None and entry.events:
        del usual["timesteps"]  # their frames say how many
    named = {"teacher": str(teacher), "student": student}
    request = _request(DistillRequest, {**usual, **named, **options})
    # TSER_* variables are of the command line: a script says all that it means
    given = recipe.Layer("arguments", request.changes)
    upper = [recipe.from_assignments(request.assignments), given]
    names = [request.recipe] if request.recipe else recipe.defaults("student", upper)
    layers = [*map(recipe.read, names), *upper]
    config = recipe.resolve(recipe.with_plugins(layers))
    return distill_run(config, Options(request.runs_dir, request.resume, request.progress))


def _request(kind: type[Any], options: Mapping[str, Any]) -> Any:
    # in Python a path may be written as a text, and a text of digits as a number
    given = dict(options)
    for one in options_of(kind):
        value = given.get(one.name)
        if one.hint == tuple[str, ...] and isinstance(value, str):
            given[one.name] = (value,)
        elif one.hint in (Path, Path | None) and isinstance(value, str):
            given[one.name] = Path(value)
        elif one.hint in (str, str | None) and isinstance(value, int):
            given[one.name] = str(value)
    request = kind(**{name: value for name, value in given.items() if value is not None})
    plugins.load(request.plugin)
    return request


def distill_networks(
    teacher: nn.Module | None,
    student: nn.Module,
    train: Iterable[Any],
    test: Iterable[Any],
    *,
    timesteps: int = 2,
    method: str = "tser",
    settings: Settings | None = None,
    runs_dir: str | Path = "runs",
    progress: Progress | None = None,
) -> record.RunResult:
    """Distil your own student from your own teacher, on your own data loaders.

    `teacher(images)` returns logits [N, K]; it is frozen, and None is allowed for methods without
    one. `student(images, timesteps)` returns logits [T, N, K]; it is trained in place. Neurons of
    spikingjelly, snnTorch and norse are reset before each batch. `train` and `test` give pairs
    (images [N, ...], labels [N]). `method` is any registered one; those that compare features ask
    both networks for `stage_names()`. `settings` are those of the sections method, optimizer,
    schedule, training, performance and energy; with one of energy, operations are counted. A budget
    asks the student for `input_kinds()`.

    The run's folder (metrics.csv, per_timestep.csv, checkpoints, weights) is made under
    `runs_dir`. Return what was measured on `test`. Raises TserError.
    """
    config = own_config(timesteps, method, settings)
    # the inputs may be anything: channels_last is for images [N, C, H, W]
    runtime = make_runtime(config.training, channels_last=False)
    seed_everything(config.training.seed, config.training.deterministic)
    batches, test_batches = OwnLoader(train), OwnLoader(test)
    own_teacher = None if teacher is None else OwnNetwork(teacher, False, as_given=True)
    own_student = _forgetting(student)
    for network in filter(None, (own_student, own_teacher)):
        runtime.place(network)
    images = _check(own_student, own_teacher, batches, runtime, timesteps, trained=True)
    test_batches.classes = batches.classes
    # methods that compare features build adapters for the shapes that they see
    shape: Any = tuple(images.shape[1:])
    task = distillation(own_student, own_teacher, config, shape)
    runtime.place(task.network)
    name = type(student).__name__
    run = folder.create(
        Path(runs_dir), "student", config, dataset=OWN, model=name, left_out=NOT_OWN
    )
    told = progress or Silent()
    # held like any run: no other command may resume or remove it meanwhile
    with run.lock(), recording_end(run, runtime, told) as stop:
        job = state.TrainingJob(task, batches, config, run, runtime, told, stop)  # type: ignore[arg-type]
        if task.budget is not None:
            job.control = _control(task, config, batches, runtime)
        epochs = loop.fit(job)
        counted = any(key.startswith("energy.") for key in settings or {})
        evaluation = evaluate_steps(
            own_student, test_batches, runtime, timesteps, task.teacher, stop.check, counted
        )
        reset_states(student)
        return _record(run, student, config, evaluation, epochs, task.budget)


def _forgetting(network: nn.Module) -> OwnNetwork:
    """Return a spiking network whose neurons, of known libraries, are reset before each batch."""
    own = OwnNetwork(network, spiking=True)
    own.register_forward_pre_hook(lambda module, args: reset_states(module))
    return own


def _check(
    student: OwnNetwork,
    teacher: OwnNetwork | None,
    batches: OwnLoader,
    runtime: Runtime,
    timesteps: int,
    trained: bool = False,
) -> Tensor:
    """Return images that the networks were tried on. Raises ConfigError where one can't be used.

    They are tried as copies: they stay as they are. The loader learns of the number of classes.
    """
    first = next(iter(batches), None)
    if first is None:
        raise ConfigError("a data loader gives no batch")
    images = runtime.images(first.images_NCHW[:TRIED])
    classes = _check_one("student", student, images, timesteps, trained)
    taught = _check_one("teacher", teacher, images, 1, False) if teacher else classes
    if taught != classes:
        raise ConfigError(
            f"the student gives {classes} logits an image, the teacher {taught}: both must have "
            "the same classes"
        )
    batches.classes = classes
    batches.check_labels(first.labels_N)
    return images


def _check_one(
    role: str, network: OwnNetwork, images: Tensor, timesteps: int, trained: bool
) -> int:
    said, form = f"the {role} ({type(network.module).__name__})", f"{role}(images"
    given = (images, timesteps) if network.spiking else (images,)
    form += ", timesteps)" if network.spiking else ")"
    if fault := call_fault(getattr(network.module, "forward", network.module), *given):
        raise ConfigError(
            f"{said} can't be called as {form}: {fault}. A teacher(images) returns logits [N, K], "
            "a student(images, timesteps) [T, N, K]; are they swapped?"
        )
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            tried = copied(network).eval()
            classes = int(tried(images, timesteps).shape[-1])
            problem = state_problem(tried, images, timesteps, trained) if network.spiking else ""
    except TserError:
        raise
    except Exception as error:
        raise ConfigError(f"{said} fails on {len(images)} images: {last_line(error)}") from error
    if problem:
        raise ConfigError(f"{said} {problem}")
    return classes


def _control(
    task: Task, config: Config, batches: OwnLoader, runtime: Runtime
) -> budget.EnergyControl:
    """Return what finds how much energy weighs in the loss; it measures some training images."""
    assert task.budget is not None, "only a budget asks for it"
    profile, kept = task.budget.profile, list[Batch]()
    for batch in batches:
        kept.append(batch)
        if sum(len(one.labels_N) for one in kept) >= MEASURED:
            break

    def measure() -> float:
        found = evaluate_steps(task.model, kept, runtime, task.timesteps, count=True)
        assert found.counts is not None, "a counted pass"
        return mean_energy(found.counts, profile)

    steps = batches.steps_per_epoch * config.training.epochs
    return budget.EnergyControl(budget.BudgetController(task.budget.pj, steps), measure)


def own_config(timesteps: int, method: str, settings: Settings | None) -> Config:
    """Return the settings of a training of a user's own networks. Raises ConfigError."""
    given = dict(settings or {})
    foreign = sorted(key for key in given if key.split(".")[0] in NOT_OWN)
    if foreign:
        raise ConfigError(
            f"{', '.join(foreign)}: your own networks and data loaders decide that; settings are "
            "those of method, optimizer, schedule, training, performance and energy"
        )
    # Norms are folded by the order of names, which is that of our own definitions alone.
    fixed = {"method.name": method, "model.timesteps": timesteps}
    fixed["performance.fold_teacher"] = False
    config = recipe.resolve([recipe.Layer("settings", given), recipe.Layer("arguments", fixed)])
    budget.profile_of(config)  # the run ends with it: one that can't be used is an error now
    # what is tried for "auto" is a network of ours
    chosen = {"training.precision": settle.FP32} if config.training.precision == AUTO else {}
    return config.updated(chosen)


def _record(
    run: folder.Run,
    student: nn.Module,
    config: Config,
    evaluation: Evaluation,
    epochs: list[state.Row],
    kept: budget.EnergyBudget | None,
) -> record.RunResult:
    name, rows, method = type(student).__name__, evaluation.rows(), method_label(config)
    labels = {"run": run.name, "dataset": OWN, "split": "test", "method": method, "student": name}
    per_timestep_csv(run.folder / "per_timestep.csv", rows, {**labels, "teacher": None})
    # without a description: nobody but its owner can build such a network again
    digest = weights.save_model(run.model_file, student.state_dict(), {})
    of_run = Labels(run.name, OWN, digest, config.training.precision)
    result = record.RunResult(
        folder=run.folder,
        kind="student",
        model=name,
        dataset=OWN,
        method=method,
        timesteps=evaluation.timesteps,
        images=evaluation.images,
        accuracy=evaluation.accuracy,
        teacher=None,
        teacher_accuracy=evaluation.teacher_accuracy,
        # nothing was held out
        best_validation_accuracy=None,
        seconds=sum(row["seconds"] for row in epochs),
        per_timestep=tuple(rows),
        teacher_train_accuracy=epochs[-1].get("teacher_train_accuracy"),
        **write_energy(run, config, evaluation, of_run, kept),
    )
    run.update_status(model=name, sha256=digest, **{record.RESULT: result.to_json()})
    return result


def evaluate(run: str | Path | record.RunResult | None = None, **options: Any) -> EvaluateResult:
    """Measure a finished run at every time step, as `tser evaluate` does.

    `run`: a folder, a run's name or the beginning of it, "latest", or a result; None is the newest
    finished student. `options`: the others of `EvaluateRequest`, such as timesteps=4 (any number,
    not only the trained one), split="train", early_exit="0.8,0.9" or energy_budget="3uJ"; the
    result says whether that is `kept`. Its `rows` are those of per_timestep.csv. Raises TserError.
    """
    return evaluate_run(_request(EvaluateRequest, {**options, "run": _folder(run)}))


def evaluate_network(network: nn.Module, loader: Iterable[Any], timesteps: int) -> Evaluation:
    """Measure your own spiking network at every time step on your own data loader.

    `network(images, timesteps)` returns logits [T, N, K]; `loader` gives pairs (images, labels).
    Neurons of spikingjelly, snnTorch and norse are reset before each batch. The result's `rows()`
    have the numeric columns of per_timestep.csv. Raises TserError.
    """
    runtime = make_runtime(Config().training, channels_last=False)
    own, batches = _forgetting(network), OwnLoader(loader)
    runtime.place(own)
    _check(own, None, batches, runtime, timesteps)
    evaluation = evaluate_steps(own, batches, runtime, timesteps)
    reset_states(network)  # of the last batch it keeps tensors that have no gradient
    return evaluation


def load_run(
    run: str | Path | record.RunResult | None = None,
    *,
    runs_dir: str | Path = "runs",
    settings: Settings | None = None,
) -> FinishedRun:
    """Load a finished run: its network on the device, its data and its settings.

    `run`: as for `evaluate`. The network is `loaded.model`, frozen and in eval mode:
    `model(images_NCHW, timesteps=T)` returns [T, N, K] for a student. The data is
    `context.dataset`. Raises TserError.
    """
    return open_finished(select_run(_folder(run), Path(runs_dir)), dict(settings or {}), Silent())


def _folder(run: str | Path | record.RunResult | None) -> Path | None:
    return run.folder if isinstance(run, record.RunResult) else None if run is None else Path(run)


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
PAIRS = "a data loader must give pairs (images [N, ...], labels [N])"


class OwnLoader:
    """A user's data loader with the face of our TrainLoader and EvalLoader.

    Its order is its own: a training that is interrupted is resumed with the next epoch's images
    as the loader gives them then, not with the same bits.
    """

    # It may augment: a teacher's logits must be computed anew each time.
    deterministic_train = False

    classes = 0  # that the networks tell apart; 0: not known yet

    def __init__(self, loader: Iterable[Any]) -> None:
        # the schedule needs to know how many steps there are before the first one
        if not isinstance(loader, Sized):
            raise ConfigError("a data loader must know its number of batches: give it a __len__")
        self.steps_per_epoch = len(loader)
        self._loader = loader

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `start_step` on."""
        for step, batch in enumerate(self):
            # passed over, since a loader can only be run through from its beginning
            if step >= start_step:
                yield batch

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        place = 0
        for pair in self._loader:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ConfigError(f"{PAIRS}, not {type(pair).__name__}")
            images, labels = pair
            if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
                raise ConfigError(f"{PAIRS} as tensors")
            if labels.shape != images.shape[:1] or labels.dtype not in INTEGERS:
                raise ConfigError(
                    f"{PAIRS}: a class's number from 0 on for each image, not {labels.dtype} "
                    f"{tuple(labels.shape)} for images {tuple(images.shape)}"
                )
            if self.classes:
                self.check_labels(labels)
            yield Batch(images, labels.long(), torch.arange(place, place + len(labels)))
            place += len(labels)

    def check_labels(self, labels_N: Tensor) -> None:
        """Raise ConfigError where a label is none of the classes."""
        least, most = int(labels_N.min()), int(labels_N.max())
        if least < 0 or most >= self.classes:
            raise ConfigError(
                f"labels from {least} to {most}: the student gives {self.classes} logits an image, "
                f"for classes 0 to {self.classes - 1}"
            )
