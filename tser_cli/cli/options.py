"""Options that several subcommands share, in the panels of their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tser_cli.cli.completion import complete_recipe, complete_run, load_plugins, names_in
from tser_cli.cli.grouped import DATA, MACHINE, NETWORKS, OUTPUT, PLACES, SETTINGS, TRAINING
from tser_cli.settings import registry


def option(panel: str, *names: str, help: str, **more: Any) -> Any:
    """Return an option in a panel of the help; its default, if it has one, is not shown."""
    more = {"show_default": False, **more}
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Plugin = Annotated[
    list[str] | None,
    option(
        SETTINGS,
        "--plugin",
        help="A module or file that adds methods, models or data sets. Repeatable; TSER_PLUGIN.",
        callback=load_plugins,
        is_eager=True,
    ),
]
Dataset = Annotated[
    str | None,
    option(
        DATA,
        "--dataset",
        help=f"One of {', '.join(registry.DATASETS)}.",
        autocompletion=names_in(registry.DATASETS),
    ),
]
DataDir = Annotated[
    str | None, option(DATA, "--data-dir", help="Where data sets lie or are put (a cache folder).")
]
Timesteps = Annotated[
    int | None, option(NETWORKS, "-T", "--timesteps", help="Time steps of the student.")
]
Method = Annotated[
    str | None,
    option(
        NETWORKS,
        "--method",
        help=f"One of {', '.join(registry.METHODS)}.",
        autocompletion=names_in(registry.METHODS),
    ),
]
Temperature = Annotated[
    float | None, option(NETWORKS, "--temperature", help="Softens the distillation terms.")
]
Epochs = Annotated[
    int | None, option(TRAINING, "--epochs", help="Passes over the training images.")
]
BatchSize = Annotated[
    str | None,
    option(
        TRAINING,
        "--batch-size",
        help="Images a step, over all processes; auto: the largest power of two that fits.",
        metavar="INTEGER|auto",
    ),
]
Accumulate = Annotated[
    int | None,
    option(
        TRAINING, "--accumulate", help="Compute a batch in so many parts; it takes less memory."
    ),
]
Lr = Annotated[float | None, option(TRAINING, "--lr", help="Peak learning rate.")]
Seed = Annotated[
    int | None, option(TRAINING, "--seed", help="Seeds weights, order and augmentation.")
]
CheckpointEvery = Annotated[
    str | None, option(TRAINING, "--checkpoint-every", help="5min, 1epoch or 200steps.")
]
Resume = Annotated[
    str,
    option(
        TRAINING,
        "--resume",
        help="auto, must or never go on with an unfinished run.",
        show_default=True,
    ),
]
Device = Annotated[str | None, option(MACHINE, "--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str | None, option(MACHINE, "--precision", help="auto, fp32, bf16 or fp16.")]
ForwardBatch = Annotated[
    int | None, option(MACHINE, "--batch-size", help="Images a forward pass.", min=1)
]
Deterministic = Annotated[
    bool | None,
    option(
        MACHINE,
        "--deterministic/--no-deterministic",
        help="Only kernels that give the same bits every time.",
    ),
]
Recipe = Annotated[
    str | None,
    option(
        SETTINGS,
        "--recipe",
        help="A TOML file, a run, or a packaged recipe, as cifar100/resnet18_tser.",
        autocompletion=complete_recipe,
    ),
]
Assignments = Annotated[
    list[str] | None,
    option(SETTINGS, "--set", help="Any setting: --set optimizer.lr=0.05. Repeatable."),
]
DryRun = Annotated[
    bool,
    option(SETTINGS, "--dry-run", help="Show settings, size and time; write nothing."),
]
RunsDir = Annotated[
    Path,
    option(
        PLACES,
        "--runs-dir",
        help="Where run folders are.",
        envvar="TSER_RUNS_DIR",
        show_default=True,
    ),
]
RunFolder = Annotated[
    Path | None,
    option(
        PLACES,
        "--run",
        help="A run: its folder, name, an unambiguous beginning of it, or latest. Default: the "
        "newest finished student.",
        metavar="RUN",
        autocompletion=complete_run,
    ),
]
Json = Annotated[
    bool,
    option(OUTPUT, "--json", help="One JSON document on standard output instead of text."),
]
