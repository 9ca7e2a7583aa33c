"""Groups of options that several subcommands share, see `tser_cli.cli.grouped`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tser_cli.cli import layers, present
from tser_cli.cli import options as opt

if TYPE_CHECKING:
    from tser_cli.engine.runs.opened import Options
    from tser_cli.settings.config import Config


@dataclass(frozen=True)
class RunOptions:
    """Which finished run is measured, and where its data is."""

    run: opt.RunFolder = None
    runs_dir: opt.RunsDir = Path("runs")
    data_dir: opt.DataDir = None
    plugin: opt.Plugin = None

    def changes(self) -> dict[str, Any]:
        """Return what was given of settings, by dotted key."""
        return {"data.dir": self.data_dir}


@dataclass(frozen=True)
class MeasureOptions(RunOptions):
    """The same, and the device that it is measured on."""

    device: opt.Device = None

    def changes(self) -> dict[str, Any]:
        """Return what was given of settings, by dotted key."""
        return {**super().changes(), "training.device": self.device}


@dataclass(frozen=True)
class TrainingOptions:
    """What every training can be told."""

    dataset: opt.Dataset = None
    data_dir: opt.DataDir = None
    epochs: opt.Epochs = None
    batch_size: opt.BatchSize = None
    accumulate: opt.Accumulate = None
    lr: opt.Lr = None
    seed: opt.Seed = None
    checkpoint_every: opt.CheckpointEvery = None
    resume: opt.Resume = "auto"
    device: opt.Device = None
    precision: opt.Precision = None
    deterministic: opt.Deterministic = None
    recipe: opt.Recipe = None
    assignments: opt.Assignments = None
    plugin: opt.Plugin = None
    dry_run: opt.DryRun = False
    runs_dir: opt.RunsDir = Path("runs")

    def flags(self) -> dict[str, Any]:
        """Return what was given of settings, by dotted key; None: not given."""
        return {
            "data.name": self.dataset,
            "data.dir": self.data_dir,
            "training.epochs": self.epochs,
            "training.batch_size": self.batch_size,
            "training.accumulate": self.accumulate,
            "optimizer.lr": self.lr,
            "training.seed": self.seed,
            "training.device": self.device,
            "training.precision": self.precision,
            "training.deterministic": self.deterministic,
            "training.checkpoint_every": self.checkpoint_every,
        }

    def config(self, kind: str, flags: dict[str, Any]) -> Config:
        """Return the settings of a teacher's or a student's training; `flags`: its own ones.

        Raises ConfigError, RunError.
        """
        layers.check_resume(self.resume)
        given = {**self.flags(), **flags}
        return layers.training_config(kind, given, self.recipe, self.assignments, self.runs_dir)

    def options(self) -> Options:
        """Return how the training is to be run."""
        from tser_cli.engine.runs.opened import Options

        return Options(self.runs_dir, self.resume, present.progress())
