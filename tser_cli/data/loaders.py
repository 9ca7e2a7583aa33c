"""Batches of a data set for training and for evaluation, shared out over processes.

Batches are made in worker processes, or in this one, always with the same result. Workers are
forked, as torch does on Linux: a data set in memory then costs nothing more. So they have this
process's signal handlers, which they must lose, and could outlive it, which they must not.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NamedTuple, TypeAlias
from weakref import WeakSet

import torch
from torch.utils import data

from tser_cli.base.errors import ConfigError, DataError, TrainingError, lost_worker
from tser_cli.base.system import cores, end_with_parent
from tser_cli.data import transforms
from tser_cli.data.base import Dataset, TensorSource, split_off
from tser_cli.data.transforms import CPU, Pipeline, device_of, placed, sent
from tser_cli.settings.config import AugmentConfig, Config

Split: TypeAlias = Literal["train", "validation", "test"]
# the same batches by key, whoever makes them
Feed: TypeAlias = "LocalFeed | WorkerFeed"


class Key(NamedTuple):
    """Which batch to make; plain integers, since tensors would travel by file handle.

    In an epoch that mixes images the first of `indices` is the one that the next is mixed with: it
    is not in the batch.
    """

    epoch: int
    indices: list[int]
    step: int = 0


class Batch(NamedTuple):
    """`images_NCHW` float32, normalised; `labels_N` and `indices_N` int64.

    The indices are those of the split's source: the training source for train and validation.
    `targets_NK` float32: the shares of the classes in images that are mixed, of which the label is
    the largest; None where none are. All of them lie on one device: the CPU or the one that trains.
    """

    images_NCHW: torch.Tensor
    labels_N: torch.Tensor
    indices_N: torch.Tensor
    targets_NK: torch.Tensor | None = None


@dataclass(frozen=True)
class Share:
    """What one process of several takes of each global batch of `size` images.

    A batch is cut into `world` runs whose lengths differ by at most one.
    """

    size: int
    rank: int
    world: int

    def of(self, indices_M: torch.Tensor, batch: int, *, before: bool = False) -> list[int]:
        """This process's indices of the batch of that number; may be empty.

        `before`: with the one in front that comes before them in the whole batch, in a circle.
        """
        indices_B = indices_M[batch * self.size : (batch + 1) * self.size]
        parts = [indices_B.tensor_split(self.world)[self.rank]]
        if before:
            parts.insert(0, indices_B.roll(1).tensor_split(self.world)[self.rank][:1])
        return torch.cat(parts).tolist()


class TrainLoader:
    """The training split, in a new order each epoch.

    `images`: how many the split has, over all processes. `steps_per_epoch`: global batches an
    epoch, the incomplete last one left out unless it is the only one. `deterministic_train`:
    whether an image looks the same in every epoch.
    """

    def __init__(
        self, feed: Feed, indices_M: torch.Tensor, share: Share, seed: int, augment: AugmentConfig
    ) -> None:
        self.images = len(indices_M)
        # the incomplete last batch is left out: its images would weigh more than others
        self.steps_per_epoch = max(1, self.images // share.size)
        self.deterministic_train = augment == AugmentConfig()
        self._feed, self._indices_M, self._share, self._seed = feed, indices_M, share, seed
        self._augment = augment

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This process's part of the epoch's batches, from the one of `start_step` on.

        A pure function of (seed, epoch). Only the latest call's iterator may be read. Raises
        DataError for an image that can't be read, TrainingError if a worker dies.
        """
        assert 0 <= start_step <= self.steps_per_epoch
        # the whole epoch's order on every process: shares are cut from the same batches
        order_M = self._indices_M[transforms.permutation(self._seed, epoch, self.images)]
        steps, before = range(start_step, self.steps_per_epoch), self._augment.mixes(epoch)
        keys = [Key(epoch, self._share.of(order_M, step, before=before), step) for step in steps]
        return self._feed.batches(keys)


class EvalLoader:
    """A split in its own order, every image once over all processes; iterate it for batches.

    `images`: how many the split has, over all processes. A process may get fewer images and
    fewer batches than another: sum counts over processes after the loop, not in it.
    """

    def __init__(self, feed: Feed, indices_M: torch.Tensor, share: Share) -> None:
        self.images = len(indices_M)
        batches = range(-(-self.images // share.size))
        parts = [share.of(indices_M, batch) for batch in batches]
        self._keys = [Key(0, part) for part in parts if part]
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
    device: torch.device = CPU,
) -> TrainLoader:
    """Augmented batches of the training images that validation does not hold out.

    training.batch_size is the global one. `device` is the one that trains.
    Where data.workers is -1 and performance.data_on_device is set, images in memory move there,
    if it has room for them and they are augmented in batches. Raises ConfigError for a Cutout or
    padding too large and for a batch with fewer images than processes, DataError for an impossible
    split.
    """
    source, augment, seed = dataset.train, config.augment, config.training.seed
    training, _ = split_off(source.labels, config.data.validation_fraction)
    batch_size = min(config.training.batch_size, len(training))
    if batch_size < world:
        raise ConfigError(
            f"a batch of {batch_size} images can't be shared by {world} processes; raise "
            "training.batch_size or start fewer"
        )
    workers = config.data.workers
    if workers < 0:
        # what acts on single images would start a GPU's kernels for each: workers do it instead
        if config.performance.data_on_device and not augment.one_by_one:
            source = placed(source, device)
        workers = automatic_workers() if transforms.is_costly(source, augment, device) else 0
    pipeline = transforms.training_pipeline(source, dataset.spec, augment, seed)
    return TrainLoader(
        _feed(pipeline, config, workers, persistent=True),
        training,
        Share(batch_size, rank, world),
        seed,
        augment,
    )


def build_eval_loader(
    dataset: Dataset,
    split: Split,
    config: Config,
    *,
    rank: int = 0,
    world: int = 1,
    images: int = 0,
    batch_size: int = 0,
) -> EvalLoader:
    """Return a split, transformed the same way each time, in global batches of `batch_size`.

    0 means training.eval_batch_size, and else training.batch_size.

    `images`: take only so many, evenly spread over the split, since the images of a folder are
    sorted by class; 0 takes all. Raises DataError for a validation split that was not asked for,
    or is impossible.
    """
    source, fraction = dataset.train, config.data.validation_fraction
    if split == "validation" and fraction == 0.0:
        raise DataError(
            "there is no validation split: set data.validation_fraction, for example to 0.1, to "
            "hold one out of the training images"
        )
    if split == "test":
        source = dataset.test
        indices_M = torch.arange(len(source))
    else:
        training, validation = split_off(source.labels, fraction)
        indices_M = training if split == "train" else validation
    if images:
        indices_M = indices_M[evenly_spread(len(indices_M), images)]
    size = batch_size or config.training.eval_batch_size or config.training.batch_size
    share = Share(size, rank, world)
    workers = automatic_workers() if config.data.workers < 0 else config.data.workers
    # what lies in memory is only normalised here: no work to share out
    if isinstance(source, TensorSource):
        workers = 0
    pipeline = transforms.evaluation_pipeline(source, dataset.spec)
    return EvalLoader(_feed(pipeline, config, workers, persistent=False), indices_M, share)


def evenly_spread(total: int, wanted: int) -> torch.Tensor:
    """Return the places of `wanted` of `total` images, evenly spread; all where there are fewer."""
    count = min(wanted, total)
    return torch.arange(count) * total // count


MAX_WORKERS = 8


def automatic_workers() -> int:
    """Workers that pay for costly images: the cores of this process, at most 8."""
    # torchrun's count of processes on this machine
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, cores() // local_processes))


# pixel values that a GPU makes at a time: 64 MiB as float32, 5,461 images of CIFAR
BLOCK = 2**24


def _feed(pipeline: Pipeline, config: Config, workers: int, *, persistent: bool) -> Feed:
    asked = config.training.device
    pin = torch.cuda.is_available() and (asked == "auto" or asked.startswith("cuda"))
    if workers:
        return WorkerFeed(pipeline, workers=workers, pin=pin, persistent=persistent)
    if device_of(pipeline.source) == CPU:
        return LocalFeed(pipeline, pin=pin)
    return LocalFeed(pipeline, pin=False, ahead=BLOCK // prod(pipeline.spec.sample_shape))


class LocalFeed:
    """Makes the batches in this process, on the device where the source's images lie.

    `ahead`: so many images are made at a time, if that is more than a batch. It costs a GPU
    hardly more than one batch, since nearly all the time goes into starting its kernels.
    """

    def __init__(self, pipeline: Pipeline, *, pin: bool, ahead: int = 1) -> None:
        self._pipeline, self._pin, self._ahead = pipeline, pin, ahead

    def batches(self, keys: Sequence[Key]) -> Generator[Batch, None, None]:
        """Yield one batch a key, in order. Raises DataError for an image that can't be read."""
        labels = self._pipeline.source.labels
        for block in _blocks(keys, self._ahead):
            indices = [index for key in block for index in key.indices]
            indices_B = sent(torch.tensor(indices), labels.device)
            made = (self._pipeline(block[0].epoch, indices), labels[indices_B], indices_B)
            sizes = [len(key.indices) for key in block]
            for key, *parts in zip(block, *(torch.split(of, sizes) for of in made), strict=True):
                batch = _mixed(self._pipeline, key, Batch(*parts))
                # pinned, its copy to the GPU runs beside what the GPU computes
                pinned = (of if of is None else of.pin_memory() for of in batch)
                yield Batch._make(pinned) if self._pin else batch


def _blocks(keys: Sequence[Key], images: int) -> Iterator[list[Key]]:
    """Runs of keys of one epoch with at most so many images, or with one key."""
    block: list[Key] = []
    held = 0
    for key in keys:
        if block and (key.epoch != block[0].epoch or held + len(key.indices) > images):
            yield block
            block, held = [], 0
        block.append(key)
        held += len(key.indices)
    if block:
        yield block


def _mixed(pipeline: Pipeline, key: Key, made: Batch) -> Batch:
    """Return the batch of `key` from all its images; see `Pipeline.mixed`."""
    if not pipeline.augment.mixes(key.epoch):
        return made
    images_NCHW, targets = pipeline.mixed(key.epoch, key.step, made.images_NCHW, made.labels_N)
    # the first image was made for the second one's sake: another process may have it, or it is the
    # last of the batch
    images_NCHW, targets, indices_N = images_NCHW[1:], targets[1:], made.indices_N[1:]
    if targets.dim() == 1:
        return Batch(images_NCHW, targets, indices_N)
    return Batch(images_NCHW, targets.argmax(1), indices_N, targets)


STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class WorkerFeed:
    """Makes the batches in worker processes, on the CPU.

    With `persistent`, the workers live on from one iteration to the next. The DataLoader has a
    generator of its own: a loader draws from the global one whenever it begins, and a resumed
    run begins at other moments than an undisturbed one.
    """

    def __init__(self, pipeline: Pipeline, *, workers: int, pin: bool, persistent: bool) -> None:
        assert workers > 0
        # in place of a sampler: it holds the keys of the latest iteration
        self._keys: list[Key] = []
        self._turn = 0
        # Linux ends a worker with the thread that forked it, which only here ends with the process
        main = threading.current_thread() is threading.main_thread()
        with _workers_as_asked():
            self._loader: data.DataLoader[Batch | DataError] = data.DataLoader(
                _Batches(pipeline),
                # a key is a whole batch already
                batch_size=None,
                sampler=self._keys,
                num_workers=workers,
                # by itself torch would take each batch apart and stack it anew
                collate_fn=_as_it_is,
                pin_memory=pin,
                worker_init_fn=partial(_init_worker, os.getpid() if main else None),
                generator=torch.Generator().manual_seed(0),
                persistent_workers=persistent,
            )

    def batches(self, keys: Sequence[Key]) -> Generator[Batch, None, None]:
        """Yield one batch a key, in order; only the latest call's iterator may be read.

        Raises DataError for an image that can't be read, TrainingError if a worker dies.
        """
        self._turn += 1
        turn = self._turn
        if not keys:
            return
        self._keys[:] = keys
        with _signals_held(), _workers_as_asked():
            batches: Any = iter(self._loader)
        _alive.update(batches._workers)
        try:
            for _ in keys:
                assert turn == self._turn, "a newer iteration has taken over this feed"
                yield _next(batches)
        finally:
            # not left to the garbage collector, which would stall for ten seconds in a cycle
            if not self._loader.persistent_workers:
                batches._shutdown_workers()


class _Batches(data.Dataset["Batch | DataError"]):
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def __getitem__(self, key: Key) -> Batch | DataError:
        indices_N = torch.tensor(key.indices)
        try:
            images_NCHW = self.pipeline(key.epoch, key.indices)
        # returned, not raised: torch would bury the message in the worker's traceback
        except DataError as error:
            return error
        made = Batch(images_NCHW, self.pipeline.source.labels[indices_N], indices_N)
        return _mixed(self.pipeline, key, made)


def _next(batches: Iterator[Batch | DataError]) -> Batch:
    try:
        batch = next(batches)
    except RuntimeError as error:
        if not lost_worker(error):
            raise
        raise TrainingError(lost_worker(error)) from error
    if isinstance(batch, DataError):
        # a new one: `raise batch` would tie this frame and the workers into a cycle
        raise DataError(*batch.args)
    return batch


def _as_it_is(value: Any) -> Any:
    return value


@contextmanager
def _workers_as_asked() -> Iterator[None]:
    """Inside, torch does not warn of more workers than cores: their number was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


@contextmanager
def _signals_held() -> Iterator[None]:
    """Inside, stop signals wait, so that none can reach a worker before it ignores them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # blocked in this thread, and so in what it forks; _init_worker takes over from there
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(parent: int | None, _worker: int) -> None:
    """Leaves stopping to the main process, which saves first; dies with it, however it dies."""
    # there are as many workers as cores: more threads would wait for one another
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if parent is not None:
        end_with_parent(parent)


_alive: WeakSet[BaseProcess] = WeakSet()


@atexit.register
def _kill_workers() -> None:
    """Ends what still runs at exit: multiprocessing would ask by SIGTERM, and wait for ever."""
    if hasattr(signal, "SIGCHLD"):
        # torch's handler would report the deaths as errors
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in _alive:
        if worker.is_alive():
            worker.kill()
