"""What a data set is: a description, a training source and a test source of raw images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from tser_cli import registry
from tser_cli.config import DataConfig
from tser_cli.errors import DataError


@dataclass(frozen=True)
class DataSpec:
    """What models and transforms need to know of a data set.

    `height` and `width` (pixels) are those of the network's input. `mean` and `std`, one a
    channel, are those of the training images scaled to 0..1. `shorter`: what an image's shorter
    side is scaled to before the central crop; 0 means 256/224 of the input's, as for ImageNet.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter: int = 0

    def __post_init__(self) -> None:
        assert len(self.mean) == len(self.std) == self.channels

    @property
    def num_classes(self) -> int:
        """Return the number of classes, K."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the shape of one input, (C, H, W)."""
        return (self.channels, self.height, self.width)


class ImageSource(Protocol):
    """Labelled images by index, without any transform. `labels` is int64 [M]."""

    @property
    def labels(self) -> torch.Tensor: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> torch.Tensor:
        """Return the image as uint8 [C, H, W]; its size may differ from image to image.

        Raises DataError where it can't be read.
        """


@dataclass(frozen=True, eq=False)
class TensorSource:
    """An ImageSource held in memory, on any device: `images_MCHW` uint8, `labels` int64 [M]."""

    images_MCHW: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        assert self.images_MCHW.dtype == torch.uint8 and self.images_MCHW.ndim == 4
        assert self.labels.dtype == torch.int64
        assert self.labels.shape == self.images_MCHW.shape[:1]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        """Return the image as uint8 [C, H, W]."""
        return self.images_MCHW[index]


@dataclass(frozen=True)
class Dataset:
    """A data set. A validation split, where one is asked for, is a part of `train`.

    `measured`: what the training images gave for settings that are "auto", by dotted key.
    `test_images`: which images were split off for testing, where the data set did not say so.
    """

    spec: DataSpec
    train: ImageSource
    test: ImageSource
    measured: Mapping[str, Any] = field(default_factory=dict)
    test_images: tuple[str, ...] = ()


def given_path(config: DataConfig) -> Path | None:
    """Return `config.dir` as a path, ~ expanded; None where it is "". Raises DataError."""
    if not config.dir:
        return None
    try:
        if "\0" in config.dir:
            raise ValueError("it has a NUL character")
        return Path(config.dir).expanduser()
    except (ValueError, RuntimeError) as error:
        raise DataError(f"data.dir = {config.dir!r} is no path: {error}. Write it out") from error


def load_dataset(config: DataConfig) -> Dataset:
    """Return the data set that `config` names. Raises DataError where it is missing or damaged."""
    entry = registry.lookup("data set", registry.DATASETS, config.name)
    dataset: Dataset = registry.load(entry.target)(config)
    return dataset
