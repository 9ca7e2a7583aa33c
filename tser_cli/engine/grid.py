"""The plan of an ablation: the product of varied settings and seeds, as pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tser_cli import config as settings
from tser_cli import recipe
from tser_cli.config import Config
from tser_cli.errors import ConfigError, nearest

SEED = "training.seed"
SHORT = {
    "dataset": "data.name",
    "teacher": "model.teacher",
    "student": "model.student",
    "timesteps": "model.timesteps",
    "T": "model.timesteps",
    "method": "method.name",
    "temperature": "method.temperature",
    "entropy_weight": "method.entropy_weight",
    "kd_weight": "method.kd_weight",
    "ce_weight": "method.ce_weight",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "lr": "optimizer.lr",
    "tau": "neuron.tau",
}


@dataclass(frozen=True)
class Cell:
    """One training of an ablation: the varied settings by dotted key, the seed, all settings."""

    varied: dict[str, Any]
    seed: int
    config: Config

    @property
    def label(self) -> str:
        """`method=kd, temperature=4` without the seed."""
        return label(self.varied)


def label(varied: Mapping[str, Any]) -> str:
    """`{"method.name": "kd"}` -> "method=kd"."""
    names = {key: short for short, key in SHORT.items() if short != "T"}
    return ", ".join(f"{names.get(key, key)}={value}" for key, value in varied.items())


def full_key(name: str) -> str:
    """The dotted key of a short or dotted name. Raises ConfigError, naming the nearest."""
    key = SHORT.get(name, name)
    valid = settings.keys()
    if key not in valid:
        raise ConfigError(f'--vary: unknown key "{name}"{nearest(name, [*valid, *SHORT])}')
    if key == SEED:
        raise ConfigError("--vary: seeds are counted by --seeds, not varied")
    return key


def parse_vary(texts: Iterable[str]) -> dict[str, list[Any]]:
    """["method=ce,kd", "timesteps=1,2"] -> values by dotted key. Raises ConfigError."""
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        values = [recipe.parse_value(value.strip()) for value in listed.split(",")]
        if not equals or "" in values:
            raise ConfigError(f"--vary {text}: write --vary key=value,value")
        key = full_key(name.strip())
        if key in axes:
            raise ConfigError(f"--vary: {name.strip()} is varied twice")
        if len({repr(value) for value in values}) < len(values):
            raise ConfigError(f"--vary {text}: a value stands twice")
        axes[key] = values
    return axes


def expand(layers: list[recipe.Layer], axes: Mapping[str, list[Any]], seeds: int) -> list[Cell]:
    """Every combination of the axes' values with seeds 0 .. seeds - 1, seed by seed.

    Raises ConfigError with all problems of all combinations, and for no seed at all.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least one is needed, and an interval needs two")
    cells, problems = [], []
    for seed in range(seeds):
        for values in itertools.product(*axes.values()):
            varied = dict(zip(axes, values, strict=True))
            top = recipe.Layer("--vary", {**varied, SEED: seed})
            try:
                cells.append(Cell(varied, seed, recipe.resolve([*layers, top])))
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys("\n".join(problems).splitlines())))
    return cells


def choose_baseline(cells: list[Cell], text: str) -> dict[str, Any]:
    """The varied settings that differences are taken to: those named, else the first cell's.

    Raises ConfigError where no cell has them.
    """
    if not text:
        return cells[0].varied
    wanted = {key: values[0] for key, values in parse_vary(text.split(";")).items()}
    for cell in cells:
        if all(cell.varied.get(key) == value for key, value in wanted.items()):
            return cell.varied
    labels = "; ".join(dict.fromkeys(cell.label for cell in cells))
    raise ConfigError(f"--baseline {text}: no cell is so. Cells: {labels}")
