"""Images of any size, made fit for a network."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from tser_cli.data.image_files import SUFFIXES, image_files
from tser_cli.data.transforms import RESIZE_RATIO
from tser_cli.errors import DataError

SMALL_SIDE = 64  # up to it, nothing is cropped away at the rim


def picture_files(names: Iterable[str]) -> list[Path]:
    """Return the files that `names` stand for: a folder is searched to its depth, in order.

    Raises DataError for a folder without images; a file that is not there is found out on reading.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if not path.is_dir():
            files.append(path)
            continue
        found = image_files(path.parent, path.name)
        if not found:
            raise DataError(f"{path} has no images ({', '.join(SUFFIXES)})")
        files += sorted(path.parent / os.fsdecode(file) for file in found)
    return files


def fitted(image_CHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A uint8 image in the network's size.

    One of that size stays as it is. Any other is resized until its shorter side is that of the
    network (above 64 pixels 256 / 224 of it, as evaluation does it), then cropped to its middle.
    """
    if tuple(image_CHW.shape[1:]) == (height, width):
        return image_CHW
    from torchvision.transforms import v2

    ratio = RESIZE_RATIO if max(height, width) > SMALL_SIDE else 1.0
    shorter = round(min(height, width) * ratio)
    resize = v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop([height, width])])
    result: torch.Tensor = resize(image_CHW)
    return result
