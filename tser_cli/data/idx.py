"""Reading IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

Format: two zero bytes, a type byte (8: unsigned), the number of dimensions, each dimension as
a big-endian uint32, then the values; http://yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from tser_cli.errors import DataError

UNSIGNED_BYTE = 8


def find(folder: Path, name: str) -> Path | None:
    """The file `name` or `name`.gz in `folder`, or None."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read(path: Path, dimensions: int) -> torch.Tensor:
    """The array of an IDX file of unsigned bytes, uint8, with that many dimensions.

    Raises DataError where the file is no such file, or is cut off or damaged.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(cast(BinaryIO, file), dimensions)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{path} can't be read: {error}. The file is truncated or damaged: delete it and "
            "run again, or put a good copy in its place"
        ) from error


def _parse(file: BinaryIO, dimensions: int) -> torch.Tensor:
    magic = file.read(4)
    if magic != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
        raise ValueError(f"it begins with {magic.hex() or 'nothing'}, not as its format does")
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise ValueError("its header is cut off")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    size = math.prod(shape)
    values = bytearray(file.read(size + 1))
    if len(values) != size:
        held = f"{len(values)} bytes" if len(values) < size else "more"
        raise ValueError(f"its header promises {size} bytes, it holds {held}")
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(shape))
