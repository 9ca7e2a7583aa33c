"""How flags, recipes and variables become the settings of a training.

A flag that was not given is None and overrides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tser_cli.base.errors import ConfigError
from tser_cli.cli import terminal, verbosity
from tser_cli.settings import registry

if TYPE_CHECKING:
    from tser_cli.settings.config import Config
    from tser_cli.settings.recipe import Layer

RESUME = ("auto", "must", "never")
DEFAULT_DATASET = "digits"


def check_resume(resume: str) -> None:
    """Raise ConfigError where `resume` is no mode."""
    if resume not in RESUME:
        raise ConfigError(f'--resume "{resume}": use one of {", ".join(RESUME)}')


def training_config(
    kind: str,
    flags: dict[str, Any],
    recipe_name: str | None,
    assignments: list[str] | None,
    runs_dir: Path = Path("runs"),
) -> Config:
    """Return the settings of a training: recipe < TSER_* < --set < flags.

    Without --recipe the data set's own recipe for `kind` (teacher or student) is the base. A run
    may be the recipe, by its name too. Raises ConfigError, RunError.
    """
    from tser_cli.settings import recipe

    recipe_name = meant(recipe_name, runs_dir, recipe.available())
    upper = upper_layers(flags, assignments)
    layers = with_plugins([recipe.read(recipe_name or default_recipe(kind, upper)), *upper])
    for layer in layers:
        verbosity.LOG.info("settings from %s: %s", layer.source, layer.values)
    config = recipe.resolve(layers)
    if kind == "student":
        tell(recipe.left_out(layers))
    return config


def meant(name: str | None, runs_dir: Path, others: Iterable[str], kind: str = "*") -> str | None:
    """Return the folder of the run that `name` means, or `name` where it is something else.

    What is among the `others`, or is a file, a folder or MODULE:FUNCTION, is meant first.
    """
    from tser_cli.engine.runs import find

    if name is None or name in others or ":" in name or os.path.lexists(name):
        return name
    return find.run_or_name(name, runs_dir, kind)


def teacher_meant(name: str | None, runs_dir: Path) -> str | None:
    """Return the folder of the teacher's run that `--teacher` means, or what it says."""
    return meant(name, runs_dir, registry.MODELS, "teacher")


def with_plugins(layers: list[Layer]) -> list[Layer]:
    """Return the layers, and one that names all plug-ins, which are imported. Raises
    ConfigError.
    """
    from tser_cli.settings import plugins
    from tser_cli.settings.recipe import Layer

    for layer in layers:
        named = layer.values.get("plugins", [])
        if isinstance(named, list):
            plugins.load(name for name in map(str, named) if not plugins.is_loaded(name))
    return [*layers, Layer("plug-ins", {"plugins": plugins.stated()})]


def tell(notes: Iterable[str]) -> None:
    """Write lines to standard error, unless --quiet; under torchrun in the first process alone."""
    if os.environ.get("RANK", "0") == "0" and not verbosity.is_quiet():
        for note in notes:
            terminal.tell(note)


def upper_layers(flags: dict[str, Any], assignments: list[str] | None) -> list[Layer]:
    """Return what stands above a recipe: TSER_* < --set < flags. Raises ConfigError."""
    from tser_cli.settings import recipe

    return [
        recipe.from_environment(os.environ),
        recipe.from_assignments(assignments or []),
        recipe.from_flags(flags),
    ]


def default_recipe(kind: str, upper: list[Layer]) -> str:
    """Return the recipe of the data set that the upper layers name. Raises ConfigError."""
    named = [layer.values.get("data.name") for layer in upper]
    dataset = next((name for name in reversed(named) if name), DEFAULT_DATASET)
    entry = registry.lookup("data set", registry.DATASETS, str(dataset))
    return entry.teacher_recipe if kind == "teacher" else entry.student_recipe


def ablation_layers(
    flags: dict[str, Any], recipe_name: str | None, assignments: list[str] | None
) -> tuple[list[Layer], dict[str, Any], str]:
    """Return the layers below an ablation's cells, its [ablation] section, and its name.

    Raises ConfigError.
    """
    from tser_cli.settings import recipe

    upper = upper_layers(flags, assignments)
    name = recipe_name or default_recipe("student", upper)
    title = Path(name).stem if recipe_name else name
    layers = with_plugins([recipe.read(name), *upper])
    return layers, recipe.read_ablation(name), title
