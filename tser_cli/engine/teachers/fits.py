"""Check that a network can teach: an ANN, for these images and these classes."""

from __future__ import annotations

from tser_cli import registry
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs.model_files import Loaded, check_network
from tser_cli.engine.teachers.elsewhere import is_function
from tser_cli.errors import CheckpointError, ConfigError, unknown


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
        raise ConfigError(f"--teacher: {unknown('model', name, registry.MODELS)}")
    if registry.MODELS[name].spiking_only:
        raise ConfigError(f"--teacher {name}: it has no ANN form; use {name.removeprefix('sew_')}")


def fitting_teacher(loaded: Loaded, spec: DataSpec) -> Loaded:
    """Return `loaded`. Raises CheckpointError where it can't teach what `spec` shows."""
    check_network(as_ann(loaded), "teacher", spec)
    if loaded.classes and loaded.classes != spec.classes:
        raise CheckpointError(
            f"{loaded.source} was trained to tell apart {', '.join(loaded.classes[:3])} ..., the "
            f"classes of {spec.name} are {', '.join(spec.classes[:3])} .... Name another teacher, "
            "or train one on this data set (tser train-teacher)"
        )
    return loaded


def as_ann(loaded: Loaded) -> Loaded:
    """Return `loaded`. Raises CheckpointError where it is a spiking network, not a teacher."""
    if loaded.model.spiking:
        raise CheckpointError(
            f"{loaded.source} is a spiking network; a teacher is an ANN (tser train-teacher)"
        )
    return loaded
