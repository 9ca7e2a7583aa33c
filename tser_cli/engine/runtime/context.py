"""What every verb works with: the settings, the data, the device, and where messages go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tser_cli.config import Config
from tser_cli.data.base import Dataset, load_dataset
from tser_cli.data.loaders import Split, build_eval_loader
from tser_cli.engine.evaluation.per_timestep import Evaluation, evaluate
from tser_cli.engine.runtime.processes import Runtime, make_runtime
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.errors import Interrupted
from tser_cli.models import Classifier
from tser_cli.report import console
from tser_cli.report.progress import Progress, Silent, make_progress


@dataclass(frozen=True)
class Options:
    """How a verb is run; nothing here changes its result."""

    runs_dir: Path = Path("runs")
    resume: str = "auto"


@dataclass(frozen=True)
class Context:
    """What every verb needs first: the data, the device, and where messages go."""

    config: Config
    dataset: Dataset
    runtime: Runtime
    progress: Progress


def prepare(config: Config) -> Context:
    """Load the data and take the device. Raises DataError or ConfigError."""
    runtime = make_runtime(config.training, config.performance.channels_last)
    progress = make_progress(console.messages()) if runtime.is_main else Silent()
    # the first process downloads what is missing
    dataset = runtime.main_first(lambda: load_dataset(config.data))
    if dataset.measured:
        found = ", ".join(f"{key} = {value}" for key, value in dataset.measured.items())
        progress.say(f"measured on the training images: {found}")
        config = config.updated(dict(dataset.measured))
    return Context(config, dataset, runtime, progress)


def make_heed(stop: StopRequest, runtime: Runtime) -> Callable[[int], None]:
    """What to call after each batch: raises Interrupted in all processes where one is to stop."""

    def heed(images: int) -> None:
        signal_number = runtime.largest(stop.signal or 0)
        if signal_number:
            raise Interrupted(signal_number)

    return heed


def evaluate_split(
    model: Classifier,
    context: Context,
    split: Split,
    timesteps: int,
    teacher: Classifier | None = None,
    stop: StopRequest | None = None,
) -> Evaluation:
    """Evaluate on a split; a request to stop is heard between batches (Interrupted)."""
    loader = build_eval_loader(
        context.dataset,
        split,
        context.config,
        rank=context.runtime.rank,
        world=context.runtime.world,
    )
    heed = make_heed(stop, context.runtime) if stop else None
    return evaluate(model, loader, context.runtime, timesteps, teacher, heed)
