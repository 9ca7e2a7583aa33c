"""Set runs side by side: the settings that differ, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.engine.runs.find import find_run
from tser_cli.engine.runs.record import FINISHED, RunRecord, read_record, with_result
from tser_cli.report import comparison
from tser_cli.report.comparison import CellStatistics, Different, RunFigures, differing
from tser_cli.report.predictions import PREDICTIONS, read_predictions
from tser_cli.report.statistics import proportion_interval
from tser_cli.settings.config import Config, policies
from tser_cli.settings.fields import flatten
from tser_cli.settings.wing_options import CompareRequest

SEED, TEACHER = "training.seed", "model.teacher"
# a damaged or foreign status.json may state any number
MOST_IMAGES = 10**9
# What can move a result beside settings, as environment.json has it.
SURROUNDINGS = ("tser", "python", "processor", "threads", "git", "packages")


@dataclass(frozen=True)
class ComparedRuns:
    """Runs side by side. `settings` and `surroundings`: a name, and its value in each run.

    `cells`: where some runs differ in the seed alone, statistics of each such group against the
    first run's, named by the settings in `axes`; else ().
    """

    records: tuple[RunRecord, ...]
    figures: tuple[RunFigures, ...]
    settings: tuple[Different, ...]
    surroundings: tuple[Different, ...]
    axes: tuple[str, ...]
    cells: tuple[CellStatistics, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        names = ("images", "low", "high", "difference", "p_value", "trouble")
        return {
            "runs": [
                {"entry": record.to_json(), **{name: getattr(found, name) for name in names}}
                for record, found in zip(self.records, self.figures, strict=True)
            ],
            "settings": [list(pair) for pair in self.settings],
            "surroundings": [list(pair) for pair in self.surroundings],
            "cells": [cell.row() for cell in self.cells],
        }


def compare_runs(request: CompareRequest) -> ComparedRuns:
    """Compare runs of any state: what is not there is None. Raises ConfigError, RunError."""
    named = (find_run(name, request.runs_dir) for name in request.runs)
    # a run that is named twice, or by a link too, is one
    runs = {run.folder.resolve(): run for run in named}
    if len(runs) < 2:
        raise ConfigError("name at least two different runs; tser runs lists them")
    records = [read_record(run) for run in runs.values()]
    # what tells groups of seeds apart: settings that differ and change results
    known = policies()
    apart = [name for name, _ in differing([_told_apart(record) for record in records])]
    axes = tuple(name for name in apart if name not in known or known[name].results)
    around = [
        flatten({name: record.environment.get(name) for name in SURROUNDINGS}) for record in records
    ]
    first, *others = zip(records, map(_figures, records), strict=True)
    return ComparedRuns(
        records=tuple(records),
        figures=(first[1], *(_against(*first, *other) for other in others)),
        settings=differing([_settings(record) for record in records]),
        surroundings=differing(around),
        axes=axes,
        cells=tuple(_cells(records, axes)),
    )


def _settings(record: RunRecord) -> dict[str, Any]:
    """Return the run's settings; those that it does not know, being older, have their defaults."""
    if not record.settings:
        return {}
    # a method's own defaults depend on which method it is
    usual = {k: v for k, v in Config().flat().items() if not k.startswith("method.")}
    return {**usual, **record.settings}


def _told_apart(record: RunRecord) -> dict[str, Any]:
    # Each seed may have a teacher of its own: its architecture counts, not its folder.
    settings = {key: of for key, of in _settings(record).items() if key not in (SEED, "plugins")}
    return {**settings, TEACHER: record.teacher or settings.get(TEACHER)}


def _cells(records: Sequence[RunRecord], axes: Sequence[str]) -> list[CellStatistics]:
    """Return the statistics of runs that differ in the seed alone; () where none do."""
    cells: dict[comparison.Key, dict[int, float]] = {}
    keys = [tuple(str(_told_apart(record).get(axis)) for axis in axes) for record in records]
    for key, record in zip(keys, records, strict=True):
        usable = record.state == FINISHED and record.accuracy is not None
        if usable and record.accuracy is not None and record.seed is not None:
            # of two runs of the same seed the first that was named counts
            cells.setdefault(key, {}).setdefault(record.seed, record.accuracy)
    # one run each: there is nothing to take a mean of
    if all(len(values) == 1 for values in cells.values()):
        return []
    # all differ in the seed alone, and a table needs a column to name its rows
    if not axes:
        cells, axes = {("",): cells[()]}, ["group"]
    baseline = dict(zip(axes, keys[0] or ("",), strict=True))
    return comparison.summarise(cells, axes, baseline, "accuracy")


def _figures(record: RunRecord) -> RunFigures:
    found = RunFigures(record.state, record.accuracy, record.energy_pj)
    images = None if record.trouble else with_result(record.status).get("images")
    if not isinstance(images, int) or not 0 < images <= MOST_IMAGES or record.accuracy is None:
        return found
    # an accuracy is a quotient of whole numbers: rounding gives the number back
    low, high = proportion_interval(round(record.accuracy * images), images)
    return replace(found, images=images, low=low, high=high)


def _against(
    base: RunRecord, first: RunFigures, record: RunRecord, found: RunFigures
) -> RunFigures:
    """Return the figures of a run, with how they stand to those of the first run."""
    if first.accuracy is None or found.accuracy is None:
        return found
    found = replace(found, difference=found.accuracy - first.accuracy)
    # McNemar's test is of answers to the same images, which two data sets do not share
    if base.dataset != record.dataset:
        return found
    try:
        one, other = (read_predictions(of.folder / PREDICTIONS) for of in (base, record))
    except RunError as error:
        return replace(found, trouble=str(error))
    pair = comparison.disagreement(one, other) if one and other else None
    return replace(found, p_value=pair.p_value) if pair else found
