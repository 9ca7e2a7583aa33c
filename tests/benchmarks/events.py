"""Events: from files to frames, from the cache, and a training step on frames."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from tests.benchmarks.subjects import SPEC, Size, training_step
from tests.benchmarks.timing import Ratio, alternate, ratio
from tests.data.event_formats import atis_bytes, some_events
from tser_cli.data.base import load_dataset
from tser_cli.data.loaders import build_eval_loader
from tser_cli.settings.config import Config
from tser_cli.settings.recipe import Layer, resolve

FILES, EVENTS = 2000, 4200  # of N-MNIST so many a sample
FRAMES = 6
ON_FRAMES = replace(SPEC, channels=2, height=34, width=34, mean=(0, 0), std=(1, 1), frames=FRAMES)
ON_IMAGES = replace(ON_FRAMES, frames=0)
SIZE = Size(FRAMES, 32, "resnet20", "sew_resnet20")


@contextmanager
def _files() -> Iterator[Config]:
    """Settings of a data set of so many files, and a cache folder of its own."""
    with (
        tempfile.TemporaryDirectory() as place,
        patch.dict(os.environ, {"XDG_CACHE_HOME": place}),
    ):
        folder = Path(place, "events")
        for number in range(FILES):
            of = folder / ("Train" if number % 10 else "Test") / str(number // 10 % 2)
            of.mkdir(parents=True, exist_ok=True)
            content = atis_bytes(some_events(EVENTS, 34, 34, number % 50))
            (of / f"{number}.bin").write_bytes(content)
        data = {"data.name": "n-mnist", "data.dir": str(folder), "data.frames": FRAMES}
        yield resolve([Layer("benchmark", {**data, "data.workers": 0})])


def _pass(config: Config) -> None:
    """Load the data set, and make batches of all of its samples."""
    dataset = load_dataset(config.data)
    for split in ("train", "test"):
        for _ in build_eval_loader(dataset, split, config):  # type: ignore[arg-type]
            pass


def samples_a_second(rounds: int, cached: bool) -> Ratio:
    """Samples as batches of frames a second of a core: from the files, or from the cache."""
    with _files() as config:
        _pass(config)
        spent = []
        for _ in range(rounds):
            if not cached:
                shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"], "tser"))
            began = time.process_time()
            _pass(config)
            spent.append(time.process_time() - began)
    return Ratio.of([FILES / one for one in spent])


def step_on_frames(rounds: int) -> Ratio:
    """A step on frames against one on images that are repeated, with the stem at every step."""
    works = {
        "frames": training_step(SIZE, spec=ON_FRAMES),
        "images": training_step(SIZE, {"performance.stem_once": False}, ON_IMAGES),
    }
    spent = alternate(works, rounds)
    return ratio(spent["frames"], spent["images"])
