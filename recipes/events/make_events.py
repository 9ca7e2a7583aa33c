"""Simulate N-MNIST's camera before the images of another data set: events, in N-MNIST's format.

    python recipes/events/make_events.py fashion-mnist events
    # the data set n-mnist reads the folder: --dataset n-mnist --data-dir events

N-MNIST was recorded by a sensor of 34 x 34 pixels that made three saccades of 100 ms along an
isosceles triangle before a still image (Orchard et al., Frontiers in Neuroscience 9:437, 2015).
Here the same is computed. These are simulated events: results on them are none on N-MNIST.

- The triangle is 6 pixels wide and high, by which the sensor is larger than an image of 28 x 28. A
  saccade begins and ends at rest, its way is 3 u^2 - 2 u^3 of the time u. Images of 8 x 8 are shown
  three times as large, and all are in the middle of a black screen.
- The light at a pixel is interpolated between the image's pixels, in 16ths, 40 times a saccade. A
  pixel sends an event whenever the logarithm of the light, with a tenth of white added for the
  black of a screen, has changed by 0.5 since its last one; its time is interpolated in the step.
- There is no noise, and all pixels are alike.

All is computed in whole numbers: any machine makes the same bytes. events.sha256, beside this file,
has the hash of each data set's files; that of what was made is printed and kept in simulated.json.
It is the SHA-256 of what this prints:

    find Train Test -name '*.bin' | LC_ALL=C sort | xargs sha256sum
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from tser_cli.base.errors import TserError
from tser_cli.base.files import sha256
from tser_cli.data.base import ImageSource, load_dataset
from tser_cli.settings.config import DataConfig

SENSOR, SHOWN = 34, 28
FINE = 16  # positions a pixel, in each direction
REACH = 3 * FINE
TRIANGLE = ((-REACH, REACH), (0, -REACH), (REACH, REACH), (-REACH, REACH))  # x, y
SACCADE_MICROSECONDS, STEPS = 100_000, 40
BRIGHTNESSES = 16 * 255  # of an interpolated pixel
BLACK, THRESHOLD = 0.1, 0.5  # of white; of the natural logarithm
UNITS = 1024  # a threshold
LOGARITHM = np.array(
    [
        round(math.log(value / BRIGHTNESSES + BLACK) / THRESHOLD * UNITS)
        for value in range(BRIGHTNESSES + 1)
    ],
    np.int32,
)
BATCH = 64


def positions() -> list[tuple[int, int, int]]:
    """Return the image's place at each step: microseconds, and x and y in 16ths of a pixel."""
    way = [(0, *TRIANGLE[0])]
    for saccade, ((x0, y0), (x1, y1)) in enumerate(pairwise(TRIANGLE)):
        for step in range(1, STEPS + 1):
            share, whole = step * step * (3 * STEPS - 2 * step), STEPS**3
            x, y = ((a * whole + (b - a) * share) // whole for a, b in ((x0, x1), (y0, y1)))
            microseconds = (saccade * STEPS + step) * SACCADE_MICROSECONDS // STEPS
            way.append((microseconds, x, y))
    return way


def on_screen(images_NHW: np.ndarray) -> np.ndarray:
    """Return images in the middle of a black screen, with room for the way: int32 [N, 42, 42]."""
    scale = max(1, SHOWN // max(images_NHW.shape[1:]))
    shown_NHW = images_NHW.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = shown_NHW.shape
    if max(height, width) > SHOWN:
        raise SystemExit(f"images of {height} x {width} pixels are larger than {SHOWN} x {SHOWN}")
    side = SENSOR + 2 * (REACH // FINE + 1)
    screen = np.zeros((count, side, side), np.int32)
    top, left = (side - height) // 2, (side - width) // 2
    screen[:, top : top + height, left : left + width] = shown_NHW
    return screen


def seen(screen_NHW: np.ndarray, x: int, y: int) -> np.ndarray:
    """Return the logarithm of the light at each pixel of the sensor, int32 [N, 34, 34].

    `x` and `y`: where the image is, in 16ths of a pixel from the middle.
    """
    margin = (screen_NHW.shape[1] - SENSOR) // 2
    (column, right), (row, below) = (divmod(margin * FINE - place, FINE) for place in (x, y))
    rows = screen_NHW[:, row : row + SENSOR + 1]
    lines = rows[:, :-1] * (FINE - below) + rows[:, 1:] * below
    lines = lines[:, :, column : column + SENSOR + 1]
    light = lines[:, :, :-1] * (FINE - right) + lines[:, :, 1:] * right
    return LOGARITHM[light >> 4]


def events_of(images_NHW: np.ndarray) -> list[np.ndarray]:
    """Return the events of each image in N-MNIST's format: uint8 [E, 5], in the order of time."""
    screen = on_screen(images_NHW)
    way = positions()
    before = seen(screen, *way[0][1:])
    sent = before.copy()  # the light at each pixel's last event
    parts = []
    for (start, _, _), (end, x, y) in pairwise(way):
        now = seen(screen, x, y)
        places = np.flatnonzero(np.abs(now - sent) >= UNITS)
        was, level, here = (of.ravel()[places].astype(np.int64) for of in (sent, now, before))
        sign = np.sign(level - was)
        count = np.abs(level - was) // UNITS
        sent.ravel()[places] += (sign * count * UNITS).astype(np.int32)
        which = np.repeat(np.arange(len(places)), count)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + 1
        crossed = np.abs(was[which] + sign[which] * nth * UNITS - here[which])
        t = start + (end - start) * crossed // np.abs(level - here)[which]
        parts.append((places[which], t, sign[which] > 0))
        before = now
    places, t, is_brighter = (np.concatenate(of) for of in zip(*parts, strict=True))
    image, place = np.divmod(places, SENSOR**2)
    y, x = np.divmod(place, SENSOR)
    order = np.lexsort((place, t, image))
    fields = (x, y, is_brighter * 128 + (t >> 16), t >> 8 & 255, t & 255)
    table_E5 = np.stack(fields, axis=1).astype(np.uint8)[order]
    ends = np.cumsum(np.bincount(image, minlength=len(images_NHW)))
    return np.split(table_E5, ends[:-1])


def written(folder: Path, part: str, source: ImageSource, images: int) -> Iterator[tuple[str, str]]:
    """Write the files of a part; yield the name and the SHA-256 of each."""
    labels_M = source.labels.numpy()
    rank_M = np.zeros_like(labels_M)  # among the images of the class
    for label in set(labels_M.tolist()):
        rank_M[labels_M == label] = np.arange((labels_M == label).sum())
        (folder / part / str(label)).mkdir(parents=True)
    chosen = sorted(np.lexsort((labels_M, rank_M))[: images or None].tolist())
    for first in range(0, len(chosen), BATCH):
        indices = chosen[first : first + BATCH]
        images_NHW = np.stack([source.image(index).numpy()[0] for index in indices])
        for index, table_E5 in zip(indices, events_of(images_NHW), strict=True):
            content = table_E5.tobytes()
            name = f"{part}/{labels_M[index]}/{index + 1:05}.bin"
            (folder / name).write_bytes(content)
            yield name, sha256(content)


def main() -> int:
    """Write the folder, whole and then renamed; print its hash. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", choices=("fashion-mnist", "digits", "mnist"))
    parser.add_argument("folder", type=Path, help="to be made; it must not exist")
    parser.add_argument(
        "--train", type=int, default=0, help="images, as many of each class; 0: all"
    )
    parser.add_argument("--test", type=int, default=0, help="images, as many of each class; 0: all")
    asked = parser.parse_args()
    if asked.folder.exists():
        print(f"{asked.folder} is there already: name another folder, or remove it")
        return 2
    try:
        dataset = load_dataset(DataConfig(name=asked.images))
    except TserError as error:
        print(error)
        return 2
    folder = asked.folder.with_name(f"{asked.folder.name}.part")
    files: dict[str, str] = {}
    parts = (("Train", dataset.train, asked.train), ("Test", dataset.test, asked.test))
    for part, source, images in parts:
        files |= written(folder, part, source, images)
    total = sum(file.stat().st_size for file in folder.glob("*/*/*.bin")) // 5
    listed = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    about = {
        "from": asked.images,
        "files": sha256(listed.encode()),
        "samples": len(files),
        "events": total,
    }
    (folder / "simulated.json").write_text(json.dumps(about, indent=2) + "\n")
    folder.rename(asked.folder)
    print(f"{asked.folder}: {len(files):,} samples of {total / len(files):,.0f} events in the mean")
    print(about["files"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
