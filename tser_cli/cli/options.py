"""Options that several subcommands share, and how flags become settings.

A flag that was not given is None and overrides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tser_cli import registry
from tser_cli.cli import terminal
from tser_cli.errors import ConfigError, TserError

if TYPE_CHECKING:
    from tser_cli.config import Config
    from tser_cli.recipe import Layer

SETTINGS = "Settings"
PLACES = "Places"
RESUME = ("auto", "must", "never")
DEFAULT_DATASET = "digits"


def _setting(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, rich_help_panel=SETTINGS, **more)


def _load_plugins(value: list[str] | None) -> list[str] | None:
    # before the other options are looked at, so that they may name what plug-ins add
    from tser_cli import plugins

    plugins.add_entry_points()
    plugins.load(plugins.asked_for(value))
    return value


def names_in(table: Mapping[str, Any]) -> Callable[[typer.Context, str], list[str]]:
    """Return a completion of the names in a registry, those of plug-ins on the line among them."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        from tser_cli import plugins

        with suppress(TserError):
            plugins.add_entry_points()
            plugins.load(plugins.asked_for(context.params.get("plugin")))
        return [name for name in table if name.startswith(incomplete)]

    return complete


Plugin = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        help="A module or file that adds methods, models or data sets. Repeatable; TSER_PLUGIN.",
        callback=_load_plugins,
        is_eager=True,
        show_default=False,
        rich_help_panel=SETTINGS,
    ),
]
Dataset = Annotated[
    str | None,
    _setting(
        "--dataset",
        help=f"One of {', '.join(registry.DATASETS)}.",
        autocompletion=names_in(registry.DATASETS),
    ),
]
DataDir = Annotated[
    str | None, _setting("--data-dir", help="Where data sets lie or are put (a cache folder).")
]
Timesteps = Annotated[int | None, _setting("-T", "--timesteps", help="Time steps of the student.")]
Method = Annotated[
    str | None,
    _setting(
        "--method",
        help=f"One of {', '.join(registry.METHODS)}.",
        autocompletion=names_in(registry.METHODS),
    ),
]
Temperature = Annotated[
    float | None, _setting("--temperature", help="Softens the distillation terms.")
]
Epochs = Annotated[int | None, _setting("--epochs", help="Passes over the training images.")]
BatchSize = Annotated[
    str | None,
    _setting(
        "--batch-size",
        help="Images a step, over all processes; auto: the largest power of two that fits.",
        metavar="INTEGER|auto",
    ),
]
Accumulate = Annotated[
    int | None,
    _setting("--accumulate", help="Compute a batch in so many parts; it takes less memory."),
]
Lr = Annotated[float | None, _setting("--lr", help="Peak learning rate.")]
Seed = Annotated[int | None, _setting("--seed", help="Seeds weights, order and augmentation.")]
Device = Annotated[str | None, _setting("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str | None, _setting("--precision", help="auto, fp32, bf16 or fp16.")]
CheckpointEvery = Annotated[
    str | None, _setting("--checkpoint-every", help="5min, 1epoch or 200steps.")
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic",
        help="Only kernels that give the same bits every time.",
        show_default=False,
        rich_help_panel=SETTINGS,
    ),
]
Recipe = Annotated[
    str | None,
    _setting("--recipe", help="A TOML file or a packaged recipe, as cifar100/resnet18_tser."),
]
Assignments = Annotated[
    list[str] | None, _setting("--set", help="Any setting: --set optimizer.lr=0.05. Repeatable.")
]
RunsDir = Annotated[
    Path,
    typer.Option(
        "--runs-dir", envvar="TSER_RUNS_DIR", help="Where run folders are.", rich_help_panel=PLACES
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--run",
        help="A run folder. Default: the newest finished student.",
        show_default=False,
        rich_help_panel=PLACES,
    ),
]
Resume = Annotated[
    str,
    typer.Option("--resume", help="auto, must or never go on with an unfinished run."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show settings, size and time; write nothing.")
]


def check_resume(resume: str) -> None:
    """Raise ConfigError where `resume` is no mode."""
    if resume not in RESUME:
        raise ConfigError(f'--resume "{resume}": use one of {", ".join(RESUME)}')


def training_config(
    kind: str, flags: dict[str, Any], recipe_name: str | None, assignments: list[str] | None
) -> Config:
    """Return the settings of a training: recipe < TSER_* < --set < flags.

    Without --recipe the data set's own recipe for `kind` (teacher or student) is the base.
    Raises ConfigError.
    """
    from tser_cli import recipe

    upper = upper_layers(flags, assignments)
    layers = with_plugins([recipe.read(recipe_name or default_recipe(kind, upper)), *upper])
    config = recipe.resolve(layers)
    if kind == "student":
        tell(recipe.left_out(layers))
    return config


def with_plugins(layers: list[Layer]) -> list[Layer]:
    """Return the layers, and one that names all plug-ins, which are imported. Raises
    ConfigError.
    """
    from tser_cli import plugins
    from tser_cli.recipe import Layer

    for layer in layers:
        named = layer.values.get("plugins", [])
        if isinstance(named, list):
            plugins.load(name for name in map(str, named) if not plugins.is_loaded(name))
    return [*layers, Layer("plug-ins", {"plugins": plugins.stated()})]


def tell(notes: Iterable[str]) -> None:
    """Write lines to standard error; of several processes under torchrun the first one alone."""
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            terminal.tell(note)


def upper_layers(flags: dict[str, Any], assignments: list[str] | None) -> list[Layer]:
    """Return what stands above a recipe: TSER_* < --set < flags. Raises ConfigError."""
    from tser_cli import recipe

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
    from tser_cli import recipe

    upper = upper_layers(flags, assignments)
    name = recipe_name or default_recipe("student", upper)
    title = Path(name).stem if recipe_name else name
    layers = with_plugins([recipe.read(name), *upper])
    return layers, recipe.read_ablation(name), title
