"""Open a finished run: its network on the device, its data, its settings."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tser_cli import recipe
from tser_cli.config import Config, keys_where
from tser_cli.data.fingerprint import fingerprint
from tser_cli.engine.runs import find_runs, model_files
from tser_cli.engine.runs.model_files import Loaded, check_network, freeze
from tser_cli.engine.runs.run_folder import IMAGES, Run
from tser_cli.engine.runs.split_list import check_test_images
from tser_cli.engine.runtime.context import Context, prepare
from tser_cli.errors import RunError
from tser_cli.report.progress import Progress
from tser_cli.sections import AUTO

PRECISION = "training.precision"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with its network on the device and its data."""

    run: Run
    context: Context
    loaded: Loaded

    @property
    def config(self) -> Config:
        """Return the run's settings."""
        return self.context.config


def select_run(run: Path | None, runs_dir: Path) -> Run:
    """Return the finished run that is meant (`find_runs.find_run`); None is the newest student.

    Raises RunError.
    """
    chosen = _chosen(run, runs_dir)
    logging.getLogger("tser_cli").info("run: %s", chosen.folder)
    return chosen


def _chosen(run: Path | None, runs_dir: Path) -> Run:
    if run is not None:
        return find_runs.open_run(run, runs_dir)
    newest = find_runs.newest_finished(runs_dir, "student")
    if newest is None:
        raise RunError(
            f"there is no finished student under {runs_dir}. Distil one first (tser distill), or "
            "name a run with --run, or its place with --runs-dir"
        )
    return newest


def measuring_config(run: Run, changes: dict[str, Any]) -> Config:
    """Return the run's settings, with how it is measured now: `TSER_*` < flags.

    Of the variables only those that measuring depends on count: a finished run's training is what
    it was. A precision of "auto" is the run's own. Raises ConfigError.
    """
    asked, flags = recipe.from_environment(os.environ), recipe.from_flags(changes)
    asked = asked.without(asked.values.keys() - keys_where(lambda policy: policy.measuring))
    return recipe.resolve([run.settings(), _as_trained(asked), _as_trained(flags)])


def _as_trained(layer: recipe.Layer) -> recipe.Layer:
    automatic = layer.values.get(PRECISION) == AUTO
    return layer.without([PRECISION] if automatic else [])


def open_finished(run: Run, changes: dict[str, Any], progress: Progress) -> FinishedRun:
    """Load the run's network and data; `changes` are settings such as training.device.

    Raises ConfigError, DataError, or CheckpointError where the network does not fit the data.
    """
    context = prepare(measuring_config(run, changes), progress)
    check_test_images(run, context.dataset)
    if run.status().get(IMAGES) not in (None, fingerprint(context.dataset)):
        context.progress.warn(f"these are other images than {run.folder} was trained and tested on")
    loaded = model_files.read_of_run(run, context.dataset.spec)
    check_network(loaded, run.kind, context.dataset.spec)
    context.runtime.place(freeze(loaded.model))
    return FinishedRun(run, context, loaded)
