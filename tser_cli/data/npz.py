"""Images of one's own in one NumPy file: train_images, train_labels, test_images, test_labels."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from tser_cli.config import DataConfig
from tser_cli.data.base import Dataset, DataSpec, TensorSource, given_path
from tser_cli.data.own_input import mean_and_std, with_mean_and_std
from tser_cli.errors import DataError
from tser_cli.sections import AUTO

PARTS = ("train", "test")
DARKEST = 2  # of 255: floats that were divided by 255 twice reach 1
LAYOUT = (
    "It must hold train_images, train_labels, test_images and test_labels: images as uint8, or as "
    "floats in 0..1, [M, H, W], [M, H, W, C] or [M, C, H, W] with 1 or 3 channels; labels as "
    "integers from 0 on, [M]"
)


def load(config: DataConfig) -> Dataset:
    """Load the file `config.dir`; classes are called by their numbers.

    Images stay as they are; floats are rounded to 8 bits. Mean and std are measured on the
    training images unless `config` states them. Raises DataError, or ConfigError where mean and
    std do not go with the channels.
    """
    path = given_path(config)
    if path is None:
        raise DataError(f"npz needs a file; name it with --data-dir FILE.npz. {LAYOUT}")
    arrays = _arrays(path)
    train, test = (_source(path, arrays, part) for part in PARTS)
    classes = _classes(path, train, test)
    channels, height, width = train.image(0).shape
    found: dict[str, Any] = mean_and_std(torch.split(train.images_MCHW, 1000))
    measured = {key: found[key] for key in found if getattr(config, key) in ((), AUTO)}
    values = {key: measured.get(key, getattr(config, key)) for key in found}
    none, one = (0.0,) * channels, (1.0,) * channels
    spec = DataSpec("npz", channels, height, width, classes, none, one)
    kept = {f"data.{key}": value for key, value in measured.items()}
    return Dataset(with_mean_and_std(spec, **values), train, test, kept)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    names = [f"{part}_{kind}" for part in PARTS for kind in ("images", "labels")]
    if not os.path.isfile(path):  # noqa: PTH113  (Path's own raises for a name too long)
        raise DataError(f"{path} is no regular file; --data-dir names the npz file. {LAYOUT}")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {Path(info.filename).stem: info.file_size for info in archive.infolist()}
        missing = [name for name in names if name not in sizes]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        needed, free = sum(sizes[name] for name in names), psutil.virtual_memory().available
        if needed > free:
            raise ValueError(f"it unpacks to {needed:,} bytes, and {free:,} are free in memory")
        # pickled objects would run code
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    # a damaged file can make the parsers fail in any way
    except Exception as error:
        raise DataError(f"{path} can't be read: {error}. {LAYOUT}") from error


def _source(path: Path, arrays: dict[str, np.ndarray], part: str) -> TensorSource:
    images_name, labels_name = f"{part}_images", f"{part}_labels"
    try:
        images_MCHW = _eight_bits(_channels_first(arrays[images_name]))
    except ValueError as error:
        raise DataError(f"{path}: {images_name} {error}. {LAYOUT}") from error
    labels_M = arrays[labels_name]
    if labels_M.ndim == 2 and labels_M.shape[1] == 1:
        labels_M = labels_M[:, 0]
    if labels_M.dtype.kind not in "iu" or labels_M.shape != images_MCHW.shape[:1]:
        raise DataError(
            f"{path}: {labels_name} has shape {list(labels_M.shape)} and type {labels_M.dtype}, "
            f"for {len(images_MCHW)} images. {LAYOUT}"
        )
    images_MCHW = np.ascontiguousarray(images_MCHW)
    return TensorSource(torch.from_numpy(images_MCHW), torch.from_numpy(labels_M.astype(np.int64)))


def _channels_first(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"has shape {list(images.shape)}")
    return images


def _eight_bits(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise ValueError(f"has type {images.dtype}")
    least, most = images.min(), images.max()
    # not (a or b): a NaN compares as false with everything
    if not (least >= 0 and most <= 1):
        raise ValueError(f"has values from {least} to {most}; floats must lie in 0..1")
    if 0 < most * 255 < DARKEST:
        raise ValueError(
            f"has values from {least} to {most}, of which 8 bits keep nothing: scale them to 0..1"
        )
    rounded: np.ndarray = np.rint(images * 255).astype(np.uint8)
    return rounded


def _classes(path: Path, train: TensorSource, test: TensorSource) -> tuple[str, ...]:
    if train.image(0).shape != test.image(0).shape:
        raise DataError(
            f"{path}: its training images have the shape {list(train.image(0).shape)}, its test "
            f"images {list(test.image(0).shape)}; they must be alike"
        )
    present = sorted(set(train.labels.tolist()))
    if present != list(range(len(present))):
        raise DataError(
            f"{path}: train_labels holds {len(present)} classes, from {present[0]} to "
            f"{present[-1]}; number them from 0 on, with images of each"
        )
    if len(present) == 1:
        raise DataError(
            f"{path}: train_labels holds one class alone: there is nothing to tell apart"
        )
    unknown = sorted(set(test.labels.tolist()) - set(present))
    if unknown:
        raise DataError(f"{path}: test_labels holds {unknown[0]}, which train_labels does not")
    return tuple(str(label) for label in present)
