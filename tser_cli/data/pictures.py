"""Image files that are named one by one, made fit for a network."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from tser_cli.data.image_files import SUFFIXES, image_files, read_image
from tser_cli.data.transforms import RESIZE_RATIO
from tser_cli.errors import DataError
from tser_cli.files import is_folder

SMALL_SIDE = 64  # up to it, nothing is cropped away at the rim


def picture_files(names: Iterable[str]) -> list[Path]:
    """Return the files that `names` stand for: a folder is searched to its depth, in order of
    names.

    Raises DataError for a folder without images; a file that is not there is found out on reading.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if not is_folder(path):
            files.append(path)
            continue
        found = image_files(path, ".")
        if not found:
            raise DataError(f"{path} has no images ({', '.join(SUFFIXES)})")
        files += [path / os.fsdecode(file) for file in found]
    return files


def fitted_picture(path: Path, shape: tuple[int, int, int], shorter: int = 0) -> torch.Tensor:
    """Return the image file as uint8 [C, H, W] of that shape. Raises DataError where it can't be
    read.

    Colours become grey for one channel, grey becomes RGB for three, transparency is dropped. An
    image of another size is resized until its shorter side has `shorter` pixels, then cropped to
    its middle; 0 means the network's side, or 256 / 224 of it above 64 pixels, as for ImageNet.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"the network takes {channels} channels; pictures have 1 or 3")
    image_CHW = read_image(path, channels)
    if image_CHW.shape == shape:
        return image_CHW
    from torchvision.transforms import v2

    ratio = RESIZE_RATIO if max(height, width) > SMALL_SIDE else 1.0
    side = shorter or round(min(height, width) * ratio)
    result: torch.Tensor = v2.Compose([v2.Resize(side), v2.CenterCrop([height, width])])(image_CHW)
    return result


def thumbnail(image_CHW: torch.Tensor, side: int) -> bytes:
    """Return an image, uint8 [C, H, W], as a PNG whose longer side has at most `side` pixels.

    Raises DataError for other than 1 or 3 channels.
    """
    from PIL import Image

    if image_CHW.shape[0] not in (1, 3):
        raise DataError(
            f"an image of {image_CHW.shape[0]} channels is no picture; those have 1 or 3"
        )
    pixels_HWC = image_CHW.permute(1, 2, 0).squeeze(-1).contiguous().numpy()
    picture = Image.fromarray(pixels_HWC)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
