"""What the training loop works with, as one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tser_cli.config import Config
from tser_cli.data.loaders import TrainLoader
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.processes import Runtime
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.engine.training.energy_budget import EnergyControl
from tser_cli.engine.training.task import Task
from tser_cli.report.progress import Progress


@dataclass
class TrainingJob:
    """Everything that the training loop works with.

    `validate` returns the accuracy on held-out images; None where none are held out. `control`
    holds the student to an energy budget, if there is one.
    """

    task: Task
    loader: TrainLoader
    config: Config
    run: Run
    runtime: Runtime
    progress: Progress
    stop: StopRequest
    validate: Callable[[], float] | None = None
    control: EnergyControl | None = None
