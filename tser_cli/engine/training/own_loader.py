"""Let the training loop work on data loaders that are not the package's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor

from tser_cli.data.workers import Batch
from tser_cli.errors import ConfigError

PAIRS = "a data loader must give pairs (images [N, ...], labels [N])"


class OwnLoader:
    """A user's data loader with the face of our TrainLoader and EvalLoader.

    Its order is its own: a training that is interrupted goes on with the next epoch's images as
    the loader gives them then, not with the same bits.
    """

    deterministic_train = False

    def __init__(self, loader: Iterable[Any]) -> None:
        if not isinstance(loader, Sized):
            raise ConfigError("a data loader must know its number of batches: give it a __len__")
        self.steps_per_epoch = len(loader)
        self._loader = loader

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `start_step` on."""
        for step, batch in enumerate(self):
            if step >= start_step:
                yield batch

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        place = 0
        for pair in self._loader:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ConfigError(f"{PAIRS}, not {type(pair).__name__}")
            images, labels = pair
            if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
                raise ConfigError(f"{PAIRS} as tensors")
            yield Batch(images, labels, torch.arange(place, place + len(labels)))
            place += len(labels)
