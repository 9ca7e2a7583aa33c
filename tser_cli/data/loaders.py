"""Batches of a data set for training and for evaluation, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import torch

from tser_cli.config import Config
from tser_cli.data.base import Dataset, ImageSource, TensorSource
from tser_cli.data.devices import CPU, device_of, placed
from tser_cli.data.randomness import permutation
from tser_cli.data.splits import train_validation
from tser_cli.data.transforms import (
    Pipeline,
    evaluation_pipeline,
    is_costly,
    is_deterministic,
    training_pipeline,
)
from tser_cli.data.workers import Batch, Feed, LocalFeed, WorkerFeed, automatic_workers
from tser_cli.errors import ConfigError, DataError

__all__ = [
    "Batch",
    "EvalLoader",
    "Split",
    "TrainLoader",
    "build_eval_loader",
    "build_train_loader",
    "evenly_spread",
]

Split: TypeAlias = Literal["train", "validation", "test"]

# pixel values that a GPU makes at a time: 64 MiB as float32, 5,461 images of CIFAR
BLOCK = 2**24


@dataclass(frozen=True)
class Share:
    """What one process of several takes of each global batch of `size` images.

    A batch is cut into `world` runs whose lengths differ by at most one.
    """

    size: int
    rank: int
    world: int

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world

    def of(self, indices_M: torch.Tensor, batch: int) -> list[int]:
        """This process's indices of the batch of that number; may be empty."""
        indices_B = indices_M[batch * self.size : (batch + 1) * self.size]
        return indices_B.tensor_split(self.world)[self.rank].tolist()


class TrainLoader:
    """The training split, in a new order each epoch.

    `images`: how many the split has, over all processes. `steps_per_epoch`: global batches an
    epoch, the incomplete last one left out unless it is the only one. `deterministic_train`:
    whether an image looks the same in every epoch.
    """

    def __init__(
        self, feed: Feed, indices_M: torch.Tensor, share: Share, seed: int, deterministic: bool
    ) -> None:
        self.images = len(indices_M)
        self.steps_per_epoch = max(1, self.images // share.size)
        self.deterministic_train = deterministic
        self._feed, self._indices_M, self._share, self._seed = feed, indices_M, share, seed

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This process's part of the epoch's batches, from the one of `start_step` on.

        A pure function of (seed, epoch). Only the latest call's iterator may be read. Raises
        DataError for an image that can't be read, TrainingError if a worker dies.
        """
        assert 0 <= start_step <= self.steps_per_epoch
        order_M = self._indices_M[permutation(self._seed, epoch, self.images)]
        steps = range(start_step, self.steps_per_epoch)
        return self._feed.batches([(epoch, self._share.of(order_M, step)) for step in steps])


class EvalLoader:
    """A split in its own order, every image once over all processes; iterate it for batches.

    `images`: how many the split has, over all processes. A process may get fewer images and
    fewer batches than another: sum counts over processes after the loop, not in it.
    """

    def __init__(self, feed: Feed, indices_M: torch.Tensor, share: Share) -> None:
        self.images = len(indices_M)
        batches = range(-(-self.images // share.size))
        parts = [share.of(indices_M, batch) for batch in batches]
        self._keys = [(0, part) for part in parts if part]
        self._feed = feed

    def __len__(self) -> int:
        """Return the number of batches that this process gets."""
        return len(self._keys)

    def __iter__(self) -> Iterator[Batch]:
        return self._feed.batches(self._keys)


def build_train_loader(
    dataset: Dataset,
    config: Config,
    *,
    rank: int = 0,
    world: int = 1,
    device: torch.device | None = None,
) -> TrainLoader:
    """Augmented batches of the training images that validation does not hold out.

    training.batch_size is the global one. `device` is the one that trains (default: the CPU).
    Where data.workers is -1 and performance.data_on_device is set, images in memory move there,
    if it has room for them, and are augmented there. Raises ConfigError for a Cutout or padding
    too large and for a batch with fewer images than processes, DataError for an impossible split.
    """
    training, _ = train_validation(dataset.train.labels, config.data.validation_fraction)
    batch_size = min(config.training.batch_size, len(training))
    if batch_size < world:
        raise ConfigError(
            f"a batch of {batch_size} images can't be shared by {world} processes; raise "
            "training.batch_size or start fewer"
        )
    return TrainLoader(
        _train_feed(dataset, config, device or CPU),
        training,
        Share(batch_size, rank, world),
        config.training.seed,
        is_deterministic(config.augment),
    )


def _train_feed(dataset: Dataset, config: Config, device: torch.device) -> Feed:
    source, workers, augment = dataset.train, config.data.workers, config.augment
    if workers < 0:
        # resizing acts on the CPU
        if config.performance.data_on_device and not augment.random_resized_crop:
            source = placed(source, device)
        workers = automatic_workers() if is_costly(source, augment, device) else 0
    pipeline = training_pipeline(source, dataset.spec, augment, config.training.seed)
    return _feed(pipeline, config, workers, persistent=True)


def evenly_spread(total: int, wanted: int) -> torch.Tensor:
    """Return the places of `wanted` of `total` images, evenly spread; all where there are fewer."""
    count = min(wanted, total)
    return torch.arange(count) * total // count


def build_eval_loader(
    dataset: Dataset,
    split: Split,
    config: Config,
    *,
    rank: int = 0,
    world: int = 1,
    images: int = 0,
) -> EvalLoader:
    """Return a split with the deterministic transforms, in global batches of
    training.eval_batch_size.

    `images`: take only so many, evenly spread over the split, since the images of a folder are
    sorted by class; 0 takes all. Raises DataError for a validation split that was not asked for,
    or is impossible.
    """
    source, indices_M = _split(dataset, split, config.data.validation_fraction)
    if images:
        indices_M = indices_M[evenly_spread(len(indices_M), images)]
    share = Share(config.training.eval_batch_size or config.training.batch_size, rank, world)
    workers = automatic_workers() if config.data.workers < 0 else config.data.workers
    if isinstance(source, TensorSource):
        workers = 0
    pipeline = evaluation_pipeline(source, dataset.spec)
    return EvalLoader(_feed(pipeline, config, workers, persistent=False), indices_M, share)


def _feed(pipeline: Pipeline, config: Config, workers: int, *, persistent: bool) -> Feed:
    if workers:
        return WorkerFeed(pipeline, workers=workers, pin=_pins(config), persistent=persistent)
    if device_of(pipeline.source) == CPU:
        return LocalFeed(pipeline, pin=_pins(config))
    return LocalFeed(pipeline, pin=False, ahead=BLOCK // prod(pipeline.spec.image_shape))


def _split(dataset: Dataset, split: Split, fraction: float) -> tuple[ImageSource, torch.Tensor]:
    if split == "test":
        return dataset.test, torch.arange(len(dataset.test))
    if split == "validation" and fraction == 0.0:
        raise DataError(
            "there is no validation split: set data.validation_fraction, for example to 0.1, to "
            "hold one out of the training images"
        )
    training, validation = train_validation(dataset.train.labels, fraction)
    return dataset.train, training if split == "train" else validation


def _pins(config: Config) -> bool:
    device = config.training.device
    return torch.cuda.is_available() and (device == "auto" or device.startswith("cuda"))
