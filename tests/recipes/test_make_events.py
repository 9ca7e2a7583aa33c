"""The script that simulates N-MNIST's camera before the images of other data sets."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tser_cli.data.base import load_dataset
from tser_cli.data.event_files import read_atis, read_events
from tser_cli.settings.config import DataConfig

SCRIPT = Path(__file__).resolve().parents[2] / "recipes/events/make_events.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module; the test is skipped where there is no checkout."""
    if not SCRIPT.is_file():
        pytest.skip("the script is not here")
    spec = importlib.util.spec_from_file_location("make_events", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_way_is_a_triangle(script: ModuleType) -> None:
    way = script.positions()
    assert [way[saccade * script.STEPS] for saccade in range(4)] == [
        (saccade * 100_000, *corner) for saccade, corner in enumerate(script.TRIANGLE)
    ]
    speeds = np.abs(np.diff(list(way), axis=0)[: script.STEPS, 2])
    assert speeds[0] < 2 and speeds[-1] < 2 and 3 < speeds[script.STEPS // 2] < 5


def test_a_pixel_sends_an_event_at_each_threshold(script: ModuleType) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    both = script.events_of(images)
    table = both[1].astype(int)
    t = (table[:, 2] & 127) << 16 | table[:, 3] << 8 | table[:, 4]
    assert (np.diff(t) >= 0).all() and t[0] > 0 and t[-1] <= 300_000
    way = script.positions()
    light = [script.seen(script.on_screen(images), x, y)[1] for _, x, y in way]
    for row, column in ((3, 3), (16, 20), (33, 17)):
        expected, sent = [], int(light[0][row, column])
        for (start, _, _), (end, _, _), before, now in zip(way, way[1:], light, light[1:]):  # noqa: B905
            was, level = int(before[row, column]), int(now[row, column])
            while abs(level - sent) >= script.UNITS:
                sent += script.UNITS if level > sent else -script.UNITS
                when = start + (end - start) * abs(sent - was) // abs(level - was)
                expected.append((when, int(level > was)))
        here = (table[:, 0] == column) & (table[:, 1] == row)
        assert list(zip(t[here].tolist(), (table[here, 2] >> 7).tolist(), strict=True)) == expected
    # the way ends where it began: each pixel became as often darker as brighter
    signs = np.zeros((34, 34), int)
    np.add.at(signs, (table[:, 1], table[:, 0]), np.where(table[:, 2] & 128, 1, -1))
    assert not signs.any()
    assert np.array_equal(script.events_of(images[1:])[0], both[1])


def test_n_mnist_reads_what_is_made(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "events"
    arguments = ["make_events.py", "digits", str(folder), "--train", "40", "--test", "30"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert script.main() == 0
    about = json.loads((folder / "simulated.json").read_text())
    data = load_dataset(DataConfig(name="n-mnist", dir=str(folder), frames=6))
    assert (len(data.train), len(data.test), data.spec.num_classes) == (40, 30, 10)
    assert data.facts["events"] == "simulated from digits" and data.notes == ()
    # the same on every machine
    assert data.facts["files"] == about["files"]
    assert about["files"] == "14ee5b0de0448145aa524f0d9a5888b94f0ab6c8448d4ed7c723c6c00dacaea1"
    file = next((folder / "Train/3").iterdir())
    events, _ = read_events(file, read_atis, (34, 34))
    assert 500 < len(events.t) < 20_000
    assert script.main() == 2  # the folder is there
    assert not (tmp_path / "events.part").exists()
