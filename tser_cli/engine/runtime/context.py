"""What every command works with: the settings, the data, the device, and where messages go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tser_cli.config import Config
from tser_cli.data.base import Dataset, load_dataset
from tser_cli.engine.runtime.processes import Runtime, make_runtime
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.engine.runtime.whole_paths import with_whole_paths
from tser_cli.errors import Interrupted
from tser_cli.report.progress import Progress, Silent

CheckStop = Callable[[], None]


@dataclass(frozen=True)
class Options:
    """How a command is run. Nothing here changes its result.

    `runs_dir`: where run folders are. `resume`: auto, must or never go on with an unfinished run.
    `progress`: what hears of messages and of the training's progress; silent by default.
    """

    runs_dir: Path = Path("runs")
    resume: str = "auto"
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class Context:
    """The settings, the data, the device, and where messages go."""

    config: Config
    dataset: Dataset
    runtime: Runtime
    progress: Progress


def prepare(config: Config, progress: Progress) -> Context:
    """Load the data and take the device. Raises DataError or ConfigError."""
    config = with_whole_paths(config)
    runtime = make_runtime(config.training, config.performance.channels_last)
    # Rank 0 downloads what is missing; the others then find it.
    dataset = runtime.main_first(lambda: load_dataset(config.data))
    heard = progress if runtime.is_main else Silent()
    if dataset.measured:
        found = ", ".join(f"{key} = {value}" for key, value in dataset.measured.items())
        heard.say(f"measured on the training images: {found}")
        config = config.updated(dict(dataset.measured))
    return Context(config, dataset, runtime, heard)


def make_check_stop(stop: StopRequest, runtime: Runtime) -> CheckStop:
    """Return a function to call after each batch.

    It raises Interrupted in all processes as soon as one of them is asked to stop.
    """

    def check_stop() -> None:
        signal_number = runtime.largest(stop.signal or 0)
        if signal_number:
            raise Interrupted(signal_number)

    return check_stop
