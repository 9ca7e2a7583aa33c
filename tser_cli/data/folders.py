"""Data sets that lie as one image file each: ImageNet, and any folders of images.

DIR/train/CLASS/*.jpg
DIR/val/CLASS/*.jpg
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tser_cli.config import DataConfig
from tser_cli.data.base import Dataset, DataSpec, given_path
from tser_cli.data.image_files import SUFFIXES, image_files, read_image
from tser_cli.errors import DataError

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

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> torch.Tensor:
        """The image as uint8 RGB, [3, H, W]. Raises DataError that names a file it can't read."""
        return read_image(self.folder / os.fsdecode(bytes(self.files[index])))


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
    """Images in train/ and val/, a subfolder a class; any sizes, 224 x 224 for the network.

    Lists the folders and opens no image. Raises DataError where no folder is given, a class is
    empty, or train/ and val/ have different classes.
    """
    folder = given_path(config)
    if folder is None:
        raise DataError(
            f"{config.name} needs a folder; name it with --data-dir (or TSER_DATA_DIR, or data.dir "
            f"in a recipe). {_layout()}"
        )
    classes, held_classes = (_classes(folder / part) for part in ("train", "val"))
    if classes != held_classes:
        raise DataError(_difference(folder, set(classes), set(held_classes)))
    spec = DataSpec(config.name, 3, SIDE, SIDE, classes, IMAGENET_MEAN, IMAGENET_STD)
    return Dataset(spec, _source(folder / "train", classes), _source(folder / "val", classes))


def _layout() -> str:
    return (
        "It must hold train/CLASS/ and val/CLASS/, a folder for each class with its images "
        f"({', '.join(SUFFIXES)}) in it"
    )


def _classes(folder: Path) -> tuple[str, ...]:
    try:
        names = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."
        )
    except OSError as error:
        raise DataError(f"{folder} can't be listed: {error.strerror}. {_layout()}") from error
    if not names:
        raise DataError(f"{folder} has no class folders. {folder.parent}: {_layout()}")
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
