"""Teachers: found, built by a function of yours, checked, recorded in a run and read again.

This is the only reader of a run's teacher in environment.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tser_cli.base.errors import CheckpointError, ConfigError, unknown
from tser_cli.data.base import DataSpec
from tser_cli.data.own import fingerprint
from tser_cli.engine.runs import networks, own_modules
from tser_cli.engine.runs.find import all_runs, existing_path, finished, open_run
from tser_cli.engine.runs.folder import IMAGES, Run
from tser_cli.engine.runs.opened import Context
from tser_cli.models.base import OwnNetwork
from tser_cli.settings import recipe, registry
from tser_cli.settings.config import Config, ModelConfig, keys_where
from tser_cli.settings.plugins import is_function


def build_teacher(model: ModelConfig) -> networks.Loaded:
    """Build the teacher MODULE:FUNCTION, with its weights. Raises ConfigError, CheckpointError."""
    source = model.teacher
    with own_modules.their_code(f"--teacher {source}"):
        network = own_modules.build_network(source, flag="--teacher").eval()
        if model.teacher_weights:
            path = Path(model.teacher_weights).expanduser()
            own_modules.load_weights(network, path)
            source += f" with {path}"
        digest = own_modules.digest(network)
    return networks.Loaded(OwnNetwork(network, spiking=False), model.teacher, source, digest)


def renormalised(loaded: networks.Loaded, config: Config, spec: DataSpec) -> networks.Loaded:
    """Return `loaded`, which from now on sees images scaled as the settings say of the teacher.

    Images come as (p - mean) / std of the data set. The teacher gets (p - teacher_mean) /
    teacher_std. Raises ConfigError where the channels are not those of the data set.
    """
    mean, std = config.model.teacher_mean, config.model.teacher_std
    if not mean:
        return loaded
    if len(mean) != spec.channels:
        raise ConfigError(
            f"model.teacher_mean has {len(mean)} numbers, the images of {spec.name} have "
            f"{spec.channels} channels"
        )
    mean_C11, std_C11, our_mean_C11, our_std_C11 = (
        torch.tensor(values).view(-1, 1, 1) for values in (mean, std, spec.mean, spec.std)
    )
    factor_C11, shift_C11 = our_std_C11 / std_C11, (our_mean_C11 - mean_C11) / std_C11

    def rescale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0] * factor_C11.to(args[0]) + shift_C11.to(args[0]), *args[1:]

    # a hook: the network may be anybody's, and its answers are asked for in several places
    loaded.model.register_forward_pre_hook(rescale)
    return loaded


def check_architecture(name: str) -> None:
    """Raise ConfigError where `name`, which is no existing path, is no ANN architecture either."""
    if is_function(name):
        raise ConfigError(
            f"--teacher {name}: a function's network teaches in tser distill alone; name an "
            "architecture here (an ablation also takes a run or a model file)"
        )
    if name not in registry.MODELS:
        if "/" in name or "." in name:
            raise ConfigError(f"--teacher {name}: there is no such run folder or model file")
        anns = [known for known, entry in registry.MODELS.items() if not entry.spiking_only]
        raise ConfigError(f"--teacher: {unknown('model', name, anns)}")
    if registry.MODELS[name].spiking_only:
        raise ConfigError(f"--teacher {name}: it has no ANN form; use {registry.ann_beside(name)}")


def fitting_teacher(loaded: networks.Loaded, spec: DataSpec) -> networks.Loaded:
    """Return `loaded`. Raises CheckpointError where it can't teach what `spec` shows."""
    if loaded.model.spiking:
        raise CheckpointError(
            f"{loaded.source} is a spiking network; a teacher is an ANN (tser train-teacher)"
        )
    networks.check_network(loaded, "teacher", spec)
    if loaded.classes and loaded.classes != spec.classes:
        raise CheckpointError(
            f"{loaded.source} was trained on {', '.join(loaded.classes[:3])} ..., the "
            f"classes of {spec.name} are {', '.join(spec.classes[:3])} .... Name another teacher, "
            "or train one on this data set (tser train-teacher)"
        )
    return loaded


PRETRAINED_ON = "imagenet"


def find_fitting(context: Context, runs_dir: Path) -> networks.Loaded | None:
    """Return the teacher that the settings name, or None where one must be trained first.

    Raises ConfigError, or CheckpointError where it can't be read or does not fit the data set.
    """
    dataset = context.dataset
    loaded = find_teacher(context.config, dataset.spec, runs_dir, fingerprint(dataset))
    return None if loaded is None else fitting_teacher(loaded, dataset.spec)


def find_teacher(
    config: Config, spec: DataSpec, runs_dir: Path, images: str = ""
) -> networks.Loaded | None:
    """Return the teacher that `model.teacher` names, or None where one must be trained first.

    The name is a path to a run or model file, or MODULE:FUNCTION. Else it is an architecture: of
    that the newest finished teacher on the same data set and validation split is taken, or, for
    ImageNet, torchvision's weights. Raises ConfigError or CheckpointError.
    """
    model, name = config.model, config.model.teacher
    path, of_function = existing_path(name), is_function(name)
    if model.teacher_weights and not of_function:
        raise ConfigError(
            f"model.teacher_weights goes with --teacher MODULE:FUNCTION, not with {name}; "
            "name the file itself: --teacher FILE"
        )
    if model.teacher_mean and path is None and not of_function:
        raise ConfigError(
            f"model.teacher_mean is for a teacher from elsewhere: {name} is trained here, "
            "on images as the student sees them. Leave it out, or name a file"
        )
    if path is not None:
        if path.is_dir():
            loaded = networks.read_of_run(open_run(path, runs_dir), spec)
        else:
            loaded = networks.read(path, spec, model.stem)
        return renormalised(loaded, config, spec)
    if of_function:
        return renormalised(build_teacher(model), config, spec)
    check_architecture(name)
    run = newest_teacher(config, runs_dir, images)
    if run is not None:
        return networks.read_of_run(run, spec)
    if config.data.name == PRETRAINED_ON:
        return networks.pretrained(name, spec)
    return None


def newest_teacher(config: Config, runs_dir: Path, images: str = "") -> Run | None:
    """Return the teacher that finished last, of those that saw the same training images.

    `images`: the `fingerprint` of your own data, "" where it is not known.
    """

    def fits(status: Mapping[str, Any]) -> bool:
        return (
            status.get("model") == config.model.teacher
            and status.get("validation_fraction") == config.data.validation_fraction
            # recorded for folders of images alone, whose test images are held out of them
            and status.get("test_fraction") in (None, config.data.test_fraction)
            and (not images or status.get(IMAGES) == images)
        )

    return next(iter(finished(runs_dir, "teacher", config.data.name, fits)), None)


def teacher_config(config: Config) -> Config:
    """Return the settings of a teacher for the student of `config`: its recipe, same images."""
    name = config.model.teacher_recipe or registry.DATASETS[config.data.name].teacher_recipe
    flat = config.flat()
    shared = {key: flat[key] for key in keys_where(lambda policy: policy.teacher)}
    if config.model.stem == "auto":  # the student leaves it open, as one with patches must
        del shared["model.stem"]
    return recipe.resolve([recipe.read(name), recipe.Layer("student's settings", shared)])


TEACHER = "teacher"


@dataclass(frozen=True)
class RecordedTeacher:
    """What environment.json says of a run's teacher: where it lay, what it was, its SHA-256."""

    source: str
    model: str
    sha256: str


def recorded_teacher(run: Run) -> RecordedTeacher | None:
    """Return what `run` recorded of its teacher; None where it learned from none."""
    entry: Any = run.environment().get(TEACHER)
    if not isinstance(entry, dict):
        return None
    return RecordedTeacher(*(str(entry.get(name, "")) for name in ("source", "model", "sha256")))


def teacher_name(run: Run) -> str | None:
    """Return the architecture of the run's teacher, None where it had none."""
    recorded = recorded_teacher(run)
    return recorded.model if recorded else None


def read_run_teacher(run: Run, spec: DataSpec) -> networks.Loaded | None:
    """Read the network that `run` learned from; None where it learned from none.

    Raises CheckpointError where its file is gone, does not fit, or is not the one of then.
    """
    recorded = recorded_teacher(run)
    if recorded is None:
        return None
    if is_function(recorded.model):
        raise CheckpointError(
            f"the teacher of {run.folder} is built by {recorded.model}, code that a run never "
            "imports by itself"
        )
    config, path = run.config(), Path(recorded.source)
    if not path.is_file():
        # runs/student/digits/NAME: the folder of all runs may have been moved as a whole
        above = run.folder.resolve().parents[2:3]
        beside = [one for place in above for one in all_runs(place, "teacher")]
        moved = [other for other, status in beside if status.get("sha256") == recorded.sha256]
        path = moved[0].model_file if recorded.sha256 and moved else path
    if path == Path():  # of a packaged student, and no teacher here has these weights
        raise CheckpointError(f"{recorded.model}, the teacher of {run.name}, is not packaged")
    found = networks.read(path, spec, config.model.stem)
    loaded = fitting_teacher(renormalised(found, config, spec), spec)
    if loaded.sha256 != recorded.sha256:
        raise CheckpointError(
            f"{recorded.source}, the teacher of {run.folder}, has changed since that run began. "
            "Put the old file back, or begin a new run with --resume never"
        )
    return loaded


def keep_teacher(run: Run, context: Context, found: networks.Loaded) -> networks.Loaded:
    """Return the teacher that `run` began with; where it begins now, record `found` as that.

    Raises CheckpointError where an earlier teacher's file is gone or has changed.
    """

    def keep() -> networks.Loaded:
        before = recorded_teacher(run)
        if before is None or before.sha256 == found.sha256:
            # again where it is the same: its file may have moved since
            record = RecordedTeacher(found.source, found.name, found.sha256)
            run.update_environment(teacher=asdict(record))
            return found
        earlier = read_run_teacher(run, context.dataset.spec)
        assert earlier is not None, "one was recorded"
        context.progress.say(f"teacher: {earlier.source} instead, which the run began with")
        return earlier

    kept = context.runtime.on_main(keep)
    networks.freeze(kept.model)
    return kept


def teacher_to_count(run: Run, context: Context) -> networks.Loaded | None:
    """Return the run's teacher for counting its operations; None where it had none.

    What an ANN costs does not depend on its weights. So where they can't be read any more, an
    untrained network of the same architecture serves, with a warning but for a packaged student,
    which comes without its teacher.
    """
    recorded = recorded_teacher(run)
    if recorded is None:
        return None
    try:
        loaded = read_run_teacher(run, context.dataset.spec)
    except CheckpointError as error:
        if recorded.source:
            context.progress.warn(f"{error}; the operations of an untrained {recorded.model} serve")
        try:
            loaded = networks.untrained(recorded.model, context.dataset.spec, context.config)
        except ConfigError as problem:
            context.progress.warn(f"the teacher's energy is left out: {problem}")
            return None
    if loaded is not None:
        context.runtime.place(networks.freeze(loaded.model))
    return loaded
