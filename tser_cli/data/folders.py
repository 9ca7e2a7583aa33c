"""Data sets that lie as one image file each: ImageNet, and any folders of images.

DIR/train/CLASS/*.jpg
DIR/val/CLASS/*.jpg

or, for images of one's own, DIR/CLASS/*.jpg, of which a part is split off for testing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tser_cli.config import DataConfig
from tser_cli.data.base import Dataset, DataSpec, given_path
from tser_cli.data.image_files import SUFFIXES, image_files, read_image
from tser_cli.data.own_input import settle
from tser_cli.data.splits import split_off
from tser_cli.errors import DataError

PARTS = ("train", "val")
# Two folders of such names would become two classes, which a network tells apart at random.
SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing"}
SIDE = 224
IMAGENET_CLASSES = 1000
# of ImageNet's training images, as torchvision's pretrained models take them
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class FolderSource:
    """An ImageSource of image files below `folder`; `files` holds their relative paths.

    The paths are one array of bytes: as Python strings, ImageNet's would be copied into every
    worker's memory by counting their references.
    """

    folder: Path
    files: np.ndarray
    labels: torch.Tensor
    channels: int = 3

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> torch.Tensor:
        """Return the image as uint8 [channels, H, W]. Raises DataError that names a file it can't
        read.
        """
        return self.image_as(index, self.channels)

    def image_as(self, index: int, channels: int) -> torch.Tensor:
        """Return the image with so many channels: 1 (grey) or 3 (RGB)."""
        return read_image(self.folder / os.fsdecode(bytes(self.files[index])), channels)

    def part(self, indices_P: torch.Tensor) -> FolderSource:
        """Return the images at these indices."""
        return replace(self, files=self.files[indices_P.numpy()], labels=self.labels[indices_P])


def imagenet(config: DataConfig) -> Dataset:
    """ImageNet-1k: 1,000 classes, in the alphabetical order of their WordNet folders.

    Raises DataError as `imagefolder` does, and for another number of classes.
    """
    dataset = imagefolder(config)
    if dataset.spec.num_classes != IMAGENET_CLASSES:
        raise DataError(
            f"{config.dir} has {dataset.spec.num_classes} class folders, ImageNet has "
            f"{IMAGENET_CLASSES}. For other images use --dataset imagefolder"
        )
    return dataset


def imagefolder(config: DataConfig) -> Dataset:
    """Load images of one's own, a subfolder a class, from train/ and val/ or without the two.

    Any sizes; 224 x 224 RGB for the network unless `config` says otherwise. Opens no image unless
    something is to be measured. Raises DataError where no folder is given, a class is empty, or
    train/ and val/ have different classes.
    """
    folder = given_path(config)
    if folder is None:
        raise DataError(
            f"{config.name} needs a folder; name it with --data-dir (or TSER_DATA_DIR, or data.dir "
            f"in a recipe). {_layout()}"
        )
    is_split = any(os.path.isdir(folder / part) for part in PARTS)  # noqa: PTH112  (ENAMETOOLONG)
    classes, train, test = _parts(folder) if is_split else _whole(folder, config.test_fraction)
    own = DataSpec(config.name, 3, SIDE, SIDE, classes, IMAGENET_MEAN, IMAGENET_STD)
    spec, measured = settle(config, own, len(train), train.image_as)
    names = () if is_split else tuple(os.fsdecode(bytes(name)) for name in test.files)
    train, test = (replace(source, channels=spec.channels) for source in (train, test))
    return Dataset(spec, train, test, measured, names)


def _parts(folder: Path) -> tuple[tuple[str, ...], FolderSource, FolderSource]:
    classes, held_classes = (_classes(folder / part) for part in PARTS)
    if classes != held_classes:
        raise DataError(_difference(folder, set(classes), set(held_classes)))
    return classes, _source(folder / "train", classes), _source(folder / "val", classes)


def _whole(folder: Path, fraction: float) -> tuple[tuple[str, ...], FolderSource, FolderSource]:
    classes = _classes(folder)
    source = _source(folder, classes)
    if fraction == 0.0:
        raise DataError(
            f"{folder} has no train/ and val/, and data.test_fraction = 0 leaves no image to test "
            "on: choose a fraction, as 0.2"
        )
    train_P, test_P = split_off(source.labels, fraction, "test")
    return classes, source.part(train_P), source.part(test_P)


def _layout() -> str:
    return (
        "It must hold train/CLASS/ and val/CLASS/, a folder for each class with its images "
        f"({', '.join(SUFFIXES)}) in it, or the class folders alone"
    )


def _classes(folder: Path) -> tuple[str, ...]:
    try:
        names = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."
        )
    except OSError as error:
        raise DataError(f"{folder} can't be listed: {error.strerror}. {_layout()}") from error
    if not names:
        raise DataError(f"{folder} has no class folders. {_layout()}")
    if len(names) == 1:
        raise DataError(
            f"{folder} has one class folder alone ({names[0]}): there is nothing to tell apart. If "
            f"the classes are folders inside that one, name it: --data-dir {folder / names[0]}"
        )
    if {name.lower() for name in names} <= SPLIT_WORDS:
        raise DataError(
            f"the folders in {folder} are called {' and '.join(names)}, which are no classes: call "
            "the one with training images train, the one with test images val"
        )
    return tuple(names)


def _difference(folder: Path, train: set[str], val: set[str]) -> str:
    parts = []
    for present, absent, names in (("train", "val", train - val), ("val", "train", val - train)):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            parts.append(f"{len(names)} of {present}/ are not in {absent}/ ({shown})")
    return f"the class folders of {folder} differ: {'; '.join(parts)}. Both must have the same"


def _source(folder: Path, classes: tuple[str, ...]) -> FolderSource:
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = image_files(folder, name)
        if not found:
            raise DataError(f"{folder / name} has no images ({', '.join(SUFFIXES)})")
        files += found
        labels += [label] * len(found)
    return FolderSource(folder, np.array(files), torch.tensor(labels))
