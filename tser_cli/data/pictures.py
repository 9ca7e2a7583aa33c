"""Image files of any size and mode, made fit for a network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tser_cli.data.folders import SUFFIXES
from tser_cli.data.transforms import RESIZE_RATIO
from tser_cli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MODES = {1: "L", 3: "RGB"}
SMALL_SIDE = 64  # up to it, nothing is cropped away at the rim
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I")


def picture_files(names: Iterable[str]) -> list[Path]:
    """The files that `names` stand for: a folder is searched to its depth, in order of names.

    Raises DataError for a folder without images; a file that is not there is found out on reading.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not found:
            raise DataError(f"{path} has no images ({', '.join(SUFFIXES)})")
        files += found
    return files


def read_picture(path: Path, channels: int) -> torch.Tensor:
    """The file as uint8 [C, H, W], grey for one channel, RGB for three.

    Colours become grey by ITU-R 601 weights, 16 bits become 8, transparency is dropped. Raises
    DataError that names a file that can't be read.
    """
    from PIL import Image

    if channels not in MODES:
        raise DataError(f"the network takes {channels} channels; pictures have 1 or 3")
    try:
        with Image.open(path) as image:
            shown = _of_eight_bits(image) if image.mode in SIXTEEN_BITS else image
            pixels = np.array(shown.convert(MODES[channels]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} can't be read as an image: {error}") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _of_eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion would cut everything above 255 to white
    from PIL import Image

    return Image.fromarray((np.array(image) // 256).clip(0, 255).astype(np.uint8))


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
