"""Find the teacher of a student, or the settings of one that must be trained first."""

from __future__ import annotations

from pathlib import Path

from tser_cli import recipe, registry
from tser_cli.config import Config, keys_where
from tser_cli.data.base import DataSpec
from tser_cli.data.fingerprint import fingerprint
from tser_cli.engine.runs import model_files
from tser_cli.engine.runs.find_runs import all_runs, open_run
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runs.run_folder import IMAGES, Run
from tser_cli.engine.runtime.context import Context
from tser_cli.engine.runtime.whole_paths import existing_path
from tser_cli.engine.teachers.elsewhere import (
    build_teacher,
    check_from_elsewhere,
    is_function,
    renormalised,
)
from tser_cli.engine.teachers.fits import check_architecture, fitting_teacher

PRETRAINED_ON = "imagenet"


def find_fitting(context: Context, runs_dir: Path) -> Loaded | None:
    """Return the teacher that the settings name, or None where one must be trained first.

    Raises ConfigError, or CheckpointError where it can't be read or does not fit the data set.
    """
    dataset = context.dataset
    loaded = find_teacher(context.config, dataset.spec, runs_dir, fingerprint(dataset))
    return None if loaded is None else fitting_teacher(loaded, dataset.spec)


def find_teacher(config: Config, spec: DataSpec, runs_dir: Path, images: str = "") -> Loaded | None:
    """Return the teacher that `model.teacher` names, or None where one must be trained first.

    The name is a path to a run or model file, or MODULE:FUNCTION. Else it is an architecture: of
    that the newest finished teacher on the same data set and validation split is taken, or, for
    ImageNet, torchvision's weights. Raises ConfigError or CheckpointError.
    """
    name = config.model.teacher
    path = existing_path(name)
    check_from_elsewhere(config.model, path)
    if path is not None:
        if path.is_dir():
            loaded = model_files.read_of_run(open_run(path, runs_dir), spec)
        else:
            loaded = model_files.read(path, spec, config.model.stem)
        return renormalised(loaded, config, spec)
    if is_function(name):
        return renormalised(build_teacher(config.model), config, spec)
    check_architecture(name)
    run = newest_teacher(config, runs_dir, images)
    if run is not None:
        return model_files.read_of_run(run, spec)
    if config.data.name == PRETRAINED_ON:
        return model_files.pretrained(name, spec)
    return None


def newest_teacher(config: Config, runs_dir: Path, images: str = "") -> Run | None:
    """Return the teacher that finished last, of those that saw the same training images.

    `images`: the `fingerprint` of data of one's own, "" where it is not known. A teacher of before
    fingerprints were kept counts as one of any images.
    """
    fitting = []
    for run in all_runs(runs_dir, "teacher", config.data.name):
        status = run.status()
        same = (
            status.get("state") == "finished"
            and status.get("model") == config.model.teacher
            and status.get("validation_fraction") == config.data.validation_fraction
            and status.get("test_fraction") in (None, config.data.test_fraction)
            and (not images or status.get(IMAGES) in (None, images))
        )
        if same:
            fitting.append(run)
    return max(fitting, key=lambda run: run.time_of("finished"), default=None)


def teacher_config(config: Config) -> Config:
    """Return the settings of a teacher for the student of `config`: its recipe, same images."""
    name = config.model.teacher_recipe or registry.DATASETS[config.data.name].teacher_recipe
    flat = config.flat()
    shared = {key: flat[key] for key in keys_where(lambda policy: policy.teacher)}
    return recipe.resolve([recipe.read(name), recipe.Layer("student's settings", shared)])
