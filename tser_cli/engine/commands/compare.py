"""Set runs side by side: the settings that differ, and what came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.engine.ablation.summary import summarise
from tser_cli.engine.runs.find import find_run
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.record import FINISHED, RunEntry, entry_of, recorded
from tser_cli.report.predictions import PREDICTIONS, read_predictions
from tser_cli.report.statistics import mcnemar, proportion_interval
from tser_cli.settings.config import Config, policies
from tser_cli.settings.wing_options import CompareRequest

SEED, TEACHER = "training.seed", "model.teacher"
MOST_IMAGES = 10**9
# What can move a result beside settings, as environment.json has it.
SURROUNDINGS = ("tser", "python", "processor", "threads", "git", "packages")
Different = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class RunFigures:
    """What one run measured, and how it stands to the first one.

    `low` and `high`: the 95 % interval of its accuracy over test images, not over trainings.
    `difference`: its accuracy minus that of the first run. `p_value`: of McNemar's test that both
    err equally often on the same images. None where it is not known.
    """

    entry: RunEntry
    images: int | None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    p_value: float | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. `settings` and `surroundings`: a name, and its value in each run.

    `cells`: where some runs differ in the seed alone, statistics of each such group against the
    first run's, the rows of `summarise`, named by the settings in `axes`; else ().
    """

    figures: tuple[RunFigures, ...]
    settings: tuple[Different, ...]
    surroundings: tuple[Different, ...]
    axes: tuple[str, ...] = ()
    cells: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "runs": [{**vars(one), "entry": one.entry.to_json()} for one in self.figures],
            "settings": [list(pair) for pair in self.settings],
            "surroundings": [list(pair) for pair in self.surroundings],
            "cells": list(self.cells),
        }


def compare_runs(request: CompareRequest) -> Comparison:
    """Compare runs of any state: what is not there is None. Raises ConfigError, RunError."""
    named = (find_run(name, request.runs_dir) for name in request.runs)
    runs = {run.folder.resolve(): run for run in named}
    if len(runs) < 2:
        raise ConfigError("name at least two different runs; tser runs lists them")
    entries = [entry_of(run) for run in runs.values()]
    axes = _axes(entries)
    return Comparison(
        figures=tuple(_all_figures(entries)),
        settings=differing([_settings(entry) for entry in entries]),
        surroundings=differing([_surroundings(entry) for entry in entries]),
        axes=axes,
        cells=tuple(_cells(entries, axes)),
    )


def differing(documents: Sequence[Mapping[str, Any]]) -> tuple[Different, ...]:
    """Return the names whose values are not the same in all documents, with them; None: not there.

    Lists are compared as they are, and 2 is 2.0.
    """
    names = dict.fromkeys(name for document in documents for name in document)
    rows = [(name, tuple(document.get(name) for document in documents)) for name in names]
    return tuple((name, values) for name, values in rows if any(v != values[0] for v in values))


def _settings(entry: RunEntry) -> dict[str, Any]:
    """Return the run's settings; those that it does not know, being older, have their defaults."""
    if not entry.settings:
        return {}
    return {
        **{k: v for k, v in Config().flat().items() if not k.startswith("method.")},
        **entry.settings,
    }


def _surroundings(entry: RunEntry) -> dict[str, Any]:
    """Return versions, processor and threads, one level deep."""
    found: dict[str, Any] = {}
    for name in SURROUNDINGS:
        value = entry.environment.get(name)
        inside = value.items() if isinstance(value, dict) else None
        found |= {name: value} if inside is None else {f"{name}.{key}": of for key, of in inside}
    return found


def _axes(entries: Sequence[RunEntry]) -> tuple[str, ...]:
    """Return the settings that tell groups of seeds apart: those that differ and change results."""
    known = policies()
    names = [name for name, _ in differing([_told_apart(entry) for entry in entries])]
    return tuple(name for name in names if name not in known or known[name].results)


def _told_apart(entry: RunEntry) -> dict[str, Any]:
    # Each seed may have a teacher of its own: its architecture counts, not its folder.
    settings = {key: of for key, of in _settings(entry).items() if key not in (SEED, "plugins")}
    return {**settings, TEACHER: entry.teacher or settings.get(TEACHER)}


def _cells(entries: Sequence[RunEntry], axes: Sequence[str]) -> list[dict[str, Any]]:
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in entries:
        cell = {axis: str(_told_apart(entry).get(axis)) for axis in axes}
        usable = entry.state == FINISHED and entry.accuracy is not None and entry.seed is not None
        if usable:
            # of two runs of the same seed the first that was named counts
            measured = {"state": FINISHED, "accuracy": entry.accuracy, "seed": entry.seed}
            rows.setdefault((*cell.values(), entry.seed), {"group": "", **cell, **measured})
    groups = [key[:-1] for key in rows]
    if len(set(groups)) == len(groups):
        return []
    baseline = {axis: str(_told_apart(entries[0]).get(axis)) for axis in axes}
    return summarise(list(rows.values()), list(axes) or ["group"], baseline, "accuracy")


def _all_figures(entries: Sequence[RunEntry]) -> Iterable[RunFigures]:
    first = _figures(entries[0])
    yield first
    for entry in entries[1:]:
        yield _against(first, _figures(entry))


def _figures(entry: RunEntry) -> RunFigures:
    images = None if entry.trouble else recorded(Run(entry.folder)).get("images")
    if not isinstance(images, int) or not 0 < images <= MOST_IMAGES or entry.accuracy is None:
        return RunFigures(entry, None)
    low, high = proportion_interval(round(entry.accuracy * images), images)
    return RunFigures(entry, images, low, high)


def _against(first: RunFigures, other: RunFigures) -> RunFigures:
    if first.entry.accuracy is None or other.entry.accuracy is None:
        return other
    different = other.entry.accuracy - first.entry.accuracy
    other = replace(other, difference=different)
    if first.entry.dataset != other.entry.dataset:
        return other
    try:
        right, base = (read_predictions(one.entry.folder / PREDICTIONS) for one in (other, first))
    except RunError as error:
        return replace(other, trouble=str(error))
    if right is None or base is None or not _same_images(right.labels_I, base.labels_I):
        return other
    return replace(other, p_value=mcnemar(right.right(), base.right()))


def _same_images(labels_I: Any, others_I: Any) -> bool:
    return len(labels_I) == len(others_I) and bool((labels_I == others_I).all())
