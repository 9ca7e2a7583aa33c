"""A finished run, opened: its network on the device, its data, its settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tser_cli import recipe
from tser_cli.config import Config, keys_where
from tser_cli.engine.runs import model_files, run_folder
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.context import Context, prepare
from tser_cli.engine.training.task import check_teacher, freeze
from tser_cli.errors import RunError


@dataclass(frozen=True)
class Opened:
    """A finished run with its network on the device and its data."""

    run: Run
    context: Context
    loaded: Loaded

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.context.config


def select_run(run: Path | None, runs_dir: Path) -> Run:
    """The run at a path, or the newest finished student. Raises RunError."""
    if run is not None:
        return run_folder.open_run(run)
    newest = run_folder.newest_finished(runs_dir, "student")
    if newest is None:
        raise RunError(
            f"there is no finished student under {runs_dir}. Distil one first (tser distill), or "
            "name a run with --run, or its place with --runs-dir"
        )
    return newest


def measuring_config(run: Run, changes: dict[str, Any]) -> Config:
    """The run's settings, with how it is measured now: `TSER_*` < flags. Raises ConfigError.

    Of the variables only those of measuring count: a finished run's training is what it was.
    """
    asked, counting = recipe.from_environment(os.environ), keys_where(lambda p: p.measuring)
    asked = recipe.Layer(asked.source, {k: v for k, v in asked.values.items() if k in counting})
    return recipe.resolve([run.settings(), asked, recipe.from_flags(changes)])


def open_finished(run: Run, changes: dict[str, Any]) -> Opened:
    """The run's network and data; `changes` are settings such as training.device."""
    config = measuring_config(run, changes)
    context = prepare(config)
    loaded = model_files.read(run.model_file, context.dataset.spec)
    spec = context.dataset.spec
    check_teacher(loaded.model, spec.image_shape, spec.num_classes)
    context.runtime.place(freeze(loaded.model))
    return Opened(run, context, loaded)
