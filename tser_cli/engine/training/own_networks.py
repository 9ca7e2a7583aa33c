"""Let the training loop work on networks and data loaders that are not the package's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.data.workers import Batch
from tser_cli.errors import ConfigError
from tser_cli.models import Classifier

PAIRS = "a data loader must give pairs (images [N, ...], labels [N])"


class OwnNetwork(Classifier):
    """A user's module with the face of our networks.

    A spiking one is called as `module(images, timesteps)` and returns logits [T, N, K]; an ANN is
    called as `module(images)` and returns [N, K]. Methods that compare features need a method
    `stage_names()` of the module: the submodules that end its stages, whose outputs are
    [T * N, C, H, W] with time outermost.
    """

    def __init__(self, module: nn.Module, spiking: bool) -> None:
        super().__init__()
        self.module = module
        self.spiking = spiking

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        if not self.spiking:
            return self._checked(self.module(images_NCHW), 2, "[N, K]")
        logits_TNK = self._checked(self.module(images_NCHW, timesteps), 3, "[T, N, K]")
        if logits_TNK.shape[:2] != (timesteps, len(images_NCHW)):
            raise ConfigError(
                f"the student gave logits of shape {tuple(logits_TNK.shape)} for {timesteps} time "
                f"steps of {len(images_NCHW)} images; return [T, N, K], time outermost"
            )
        return logits_TNK

    def stage_names(self) -> tuple[str, ...]:
        named = getattr(self.module, "stage_names", tuple)
        return tuple(f"module.{name}" for name in named())

    def _checked(self, logits: Any, dimensions: int, shape: str) -> Tensor:
        if not isinstance(logits, Tensor) or logits.dim() != dimensions:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            role = "student" if self.spiking else "teacher"
            raise ConfigError(f"the {role} gave {found}; it must return logits {shape}")
        return logits


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
