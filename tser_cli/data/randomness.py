"""Random choices as pure functions of (seed, epoch) and of (seed, epoch, image index).

Nothing here depends on a generator's history, so that neither the number of workers and
processes nor a resume in mid-epoch changes what an image looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch

from tser_cli.data.devices import CPU, sent


class Stream(IntEnum):
    """Independent uses of one (seed, epoch)."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    CUTOUT = 4
    RESIZE = 5
    AUTOAUGMENT = 6


def permutation(seed: int, epoch: int, count: int) -> torch.Tensor:
    """Return the order of `count` images in an epoch, int64 [count]."""
    rng = np.random.default_rng([Stream.ORDER, seed, epoch])
    return torch.from_numpy(rng.permutation(count))


@lru_cache(maxsize=8)
def table(
    stream: Stream,
    seed: int,
    epoch: int,
    count: int,
    bounds: tuple[int, ...],
    device: torch.device = CPU,
) -> torch.Tensor:
    """Uniform draws for each image, int32 [count, len(bounds)]; column i is in 0..bounds[i]-1.

    Drawn on the CPU, whatever the device. The result is cached: do not write to it.
    """
    rng = np.random.default_rng([stream, seed, epoch])
    draws = rng.integers(0, bounds, size=(count, len(bounds)))
    return sent(torch.from_numpy(draws.astype(np.int32)), device)


def image_seed(stream: Stream, seed: int, epoch: int, index: int) -> int:
    """Return a 63-bit seed for one image, mixed by NumPy's SeedSequence."""
    sequence = np.random.SeedSequence([stream, seed, epoch, index])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def isolated() -> Iterator[None]:
    """Inside, torch's default generator may be seeded at will; its state is put back after.

    torchvision.transforms.v2 draws from this generator alone. Torch has one thread inside: on
    single images several only wait for one another.
    """
    state, threads = torch.default_generator.get_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.default_generator.set_state(state)
