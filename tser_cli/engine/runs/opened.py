"""What every command works with, and finished runs opened: network, data, settings, images."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tser_cli.base.errors import DataError, Interrupted, RunError, TserError
from tser_cli.base.files import read_json, write_json
from tser_cli.base.progress import Progress, Silent
from tser_cli.data.base import Dataset, load_dataset
from tser_cli.data.own import fingerprint
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.find import finished, open_run
from tser_cli.engine.runs.folder import IMAGES, PACKAGED, Run
from tser_cli.engine.runs.runtime import Runtime, make_runtime
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.settings import recipe
from tser_cli.settings.config import AUTO, Config, keys_where
from tser_cli.settings.plugins import MissingPluginError


@dataclass(frozen=True)
class Options:
    """How a command is run. Nothing here changes its result.

    `runs_dir`: where run folders are. `resume`: auto, must or never resume an unfinished run.
    `progress`: what hears of messages and of the training's progress; silent by default.
    `parent`: see `folder.PARENT`; None for a training.
    """

    runs_dir: Path = Path("runs")
    resume: str = "auto"
    progress: Progress = field(default_factory=Silent)
    parent: dict[str, str] | None = None


@dataclass(frozen=True)
class Context:
    """The settings, the data, the device, and where messages go."""

    config: Config
    dataset: Dataset
    runtime: Runtime
    progress: Progress


def prepare(config: Config, progress: Progress) -> Context:
    """Load the data and take the device. Raises DataError or ConfigError."""
    runtime = make_runtime(config.training, config.performance.channels_last)
    # Rank 0 downloads what is missing; the others then find it.
    dataset = runtime.main_first(lambda: load_dataset(config.data))
    return Context(config, dataset, runtime, progress if runtime.is_main else Silent())


def make_check_stop(stop: StopRequest, runtime: Runtime) -> Callable[[], None]:
    """Return a function to call after each batch.

    It raises Interrupted in all processes as soon as one of them is asked to stop.
    """

    def check_stop() -> None:
        signal_number = runtime.largest(stop.signal or 0)
        if signal_number:
            raise Interrupted(signal_number)

    return check_stop


PRECISION = "training.precision"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with its network on the device and its data."""

    run: Run
    context: Context
    loaded: networks.Loaded

    @property
    def config(self) -> Config:
        """Return the run's settings."""
        return self.context.config


def select_run(run: Path | None, runs_dir: Path) -> Run:
    """Return the finished run to use (`find.find_run`); None is the newest student.

    One that needs a plug-in which is not loaded is passed over, with a warning. Raises RunError.
    """
    log, lacking = logging.getLogger("tser_cli"), list[MissingPluginError]()
    for chosen in finished(runs_dir, "student") if run is None else [open_run(run, runs_dir)]:
        try:
            chosen.settings()
        except MissingPluginError as error:
            lacking.append(error)
            continue
        except TserError:
            pass  # said once it is opened
        if lacking:
            log.warning("%s is used, and a newer run is not: %s", chosen.folder, lacking[0])
        log.info("run: %s", chosen.folder)
        return chosen
    if lacking:
        raise lacking[0]
    raise RunError(
        f"there is no finished student under {runs_dir}. Distil one first (tser distill), or "
        "name a run, or its place with --runs-dir"
    )


def measuring_config(run: Run, changes: dict[str, Any]) -> Config:
    """Return the run's settings, with how it is measured now: `TSER_*` < flags.

    Of the variables only those that measuring depends on count: a finished run's training is what
    it was. A precision of "auto" is the run's own. Raises ConfigError.
    """
    asked, flags = recipe.from_environment(os.environ), recipe.from_flags(changes)
    asked = asked.without(asked.values.keys() - keys_where(lambda policy: policy.measuring))
    stated = [
        layer.without([PRECISION]) if layer.values.get(PRECISION) == AUTO else layer
        for layer in (asked, flags)
    ]
    return recipe.resolve([run.settings(), *stated])


def open_finished(run: Run, changes: dict[str, Any], progress: Progress) -> FinishedRun:
    """Load the run's network and data; `changes` are settings such as training.device.

    Raises ConfigError, DataError, or CheckpointError where the network does not fit the data.
    """
    context = prepare(measuring_config(run, changes), progress)
    check_test_images(run, context.dataset)
    if run.status().get(IMAGES) not in (None, fingerprint(context.dataset)):
        # a warning: to measure a network on other images may be just what is wanted
        context.progress.warn(f"these are other images than {run.folder} was trained and tested on")
    loaded = networks.read_of_run(run, context.dataset.spec)
    networks.check_network(loaded, run.kind, context.dataset.spec)
    context.runtime.place(networks.freeze(loaded.model))
    if student := run.environment().get(PACKAGED):
        context.progress.say(f"packaged student {student.get('name')}, copied to {run.folder}")
    say_average(context)
    return FinishedRun(run, context, loaded)


def say_average(context: Context) -> None:
    """Say which weights a run has kept where they are not the last step's."""
    if decay := context.config.training.ema_decay:
        context.progress.say(f"weights: their moving average (training.ema_decay = {decay:g})")


FILE = "split.json"


def keep_images(run: Run, context: Context) -> None:
    """Record which images the run has, or hold the data to what it began with. Raises DataError."""
    if context.dataset.test_images:
        if (run.folder / FILE).exists():
            check_test_images(run, context.dataset)
        else:
            write_json(run.folder / FILE, {"test_images": _names(context.dataset)})
            run.update_status(test_fraction=context.config.data.test_fraction)
    before, now = run.status().get(IMAGES), fingerprint(context.dataset)
    if before is None and now:
        run.update_status(**{IMAGES: now})
    elif before not in (None, now):
        raise DataError(
            f"{run.folder} began with other images than those of {context.dataset.spec.name} now: "
            "put them back, or begin a new run (--resume never)"
        )
    if facts := dict(context.dataset.facts):
        run.update_status(data=facts)


def check_test_images(run: Run, dataset: Dataset) -> None:
    """Raise DataError where the data set would be tested on other images than the run's.

    Images that came or went move others over, so that what the run learned from would be tested.
    """
    if not dataset.test_images or not (run.folder / FILE).exists():
        return
    kept = read_json(run.folder / FILE, 2**28, {"test_images": list}).get("test_images", [])
    now = _names(dataset)
    if kept != now:
        changed = sum(name not in now for name in kept)
        raise DataError(
            f"the folder of images is not the one of {run.folder}: {changed} of its {len(kept)} "
            f"test images ({FILE}) would now be others. Put the images back as they were, or train "
            "again (--resume never)"
        )


def _names(dataset: Dataset) -> list[str]:
    # as JSON can hold them
    return [name.encode(errors="replace").decode() for name in dataset.test_images]
