"""Computing batches in worker processes, or in this one, always with the same result."""

from __future__ import annotations

import atexit
import multiprocessing.util  # noqa: F401  (its exit function must be registered before ours)
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol, TypeAlias
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from tser_cli.data.devices import sent
from tser_cli.data.transforms import Pipeline
from tser_cli.errors import DataError, TrainingError
from tser_cli.operating_system import cores, end_with_parent

MAX_WORKERS = 8
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

# an epoch and the indices of one batch; plain integers, since tensors would travel by file handle
Key: TypeAlias = tuple[int, list[int]]


class Batch(NamedTuple):
    """`images_NCHW` float32, normalised; `labels_N` and `indices_N` int64.

    The indices are those of the split's source: the training source for train and validation.
    All three lie on one device: the CPU or the one that trains.
    """

    images_NCHW: torch.Tensor
    labels_N: torch.Tensor
    indices_N: torch.Tensor


class Feed(Protocol):
    """Batches by key, the same whoever makes them."""

    def batches(self, keys: Sequence[Key]) -> Generator[Batch, None, None]:
        """Yield one batch a key, in order; only the latest call's iterator may be read.

        Raises DataError for an image that can't be read, TrainingError if a worker dies.
        """


class LocalFeed:
    """Makes the batches in this process, on the device where the source's images lie.

    `ahead`: so many images are made at a time, if that is more than a batch. It costs a GPU
    hardly more than one batch, since nearly all the time goes into starting its kernels.
    """

    def __init__(self, pipeline: Pipeline, *, pin: bool, ahead: int = 1) -> None:
        self._pipeline, self._pin, self._ahead = pipeline, pin, ahead

    def batches(self, keys: Sequence[Key]) -> Generator[Batch, None, None]:
        """As Feed's."""
        for block in _blocks(keys, self._ahead):
            yield from self._made(block)

    def _made(self, block: Sequence[Key]) -> Iterator[Batch]:
        epoch, labels = block[0][0], self._pipeline.source.labels
        indices = [index for _, part in block for index in part]
        indices_B = sent(torch.tensor(indices), labels.device)
        made = (self._pipeline(epoch, indices), labels[indices_B], indices_B)
        sizes = [len(part) for _, part in block]
        for parts in zip(*(torch.split(all_B, sizes) for all_B in made), strict=True):
            yield Batch(*(part.pin_memory() if self._pin else part for part in parts))


def _blocks(keys: Sequence[Key], images: int) -> Iterator[list[Key]]:
    """Runs of keys of one epoch with at most so many images, or with one key."""
    block: list[Key] = []
    held = 0
    for epoch, indices in keys:
        if block and (epoch != block[0][0] or held + len(indices) > images):
            yield block
            block, held = [], 0
        block.append((epoch, indices))
        held += len(indices)
    if block:
        yield block


class WorkerFeed:
    """Makes the batches in worker processes, on the CPU.

    With `persistent`, the workers live on from one iteration to the next. The DataLoader has a
    generator of its own: a loader draws from the global one whenever it begins, and a resumed
    run begins at other moments than an undisturbed one.
    """

    def __init__(self, pipeline: Pipeline, *, workers: int, pin: bool, persistent: bool) -> None:
        assert workers > 0
        self._keys = _Keys()
        self._turn = 0
        in_main_thread = threading.current_thread() is threading.main_thread()
        with _workers_as_asked():
            self._loader: DataLoader[Batch | DataError] = DataLoader(
                _Batches(pipeline),
                batch_size=None,
                sampler=self._keys,
                num_workers=workers,
                collate_fn=_as_it_is,
                pin_memory=pin,
                worker_init_fn=partial(_init_worker, in_main_thread),
                generator=torch.Generator().manual_seed(0),
                persistent_workers=persistent,
            )

    def batches(self, keys: Sequence[Key]) -> Generator[Batch, None, None]:
        """As Feed's."""
        self._turn += 1
        turn = self._turn
        if not keys:
            return
        batches = self._start(keys)
        try:
            for _ in keys:
                assert turn == self._turn, "a newer iteration has taken over this feed"
                yield _next(batches)
        finally:
            # not left to the garbage collector, which would stall for ten seconds in a cycle
            if not self._loader.persistent_workers:
                batches._shutdown_workers()

    def _start(self, keys: Sequence[Key]) -> Any:
        self._keys.current = keys
        with _signals_held(), _workers_as_asked():
            batches: Any = iter(self._loader)
        _alive.update(batches._workers)
        return batches


class _Keys(Sampler[Key]):
    def __init__(self) -> None:
        self.current: Sequence[Key] = ()

    def __iter__(self) -> Iterator[Key]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


class _Batches(TorchDataset["Batch | DataError"]):
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def __getitem__(self, key: Key) -> Batch | DataError:
        epoch, indices = key
        indices_N = torch.tensor(indices)
        try:
            images_NCHW = self.pipeline(epoch, indices)
        # returned, not raised: torch would bury the message in the worker's traceback
        except DataError as error:
            return error
        return Batch(images_NCHW, self.pipeline.source.labels[indices_N], indices_N)


def _next(batches: Iterator[Batch | DataError]) -> Batch:
    try:
        batch = next(batches)
    except RuntimeError as error:
        if not is_loss_of_worker(error):
            raise
        raise TrainingError(f"a data loader worker was lost: {error}") from error
    if isinstance(batch, DataError):
        # a new one: `raise batch` would tie this frame and the workers into a cycle
        raise DataError(*batch.args)
    return batch


def is_loss_of_worker(error: RuntimeError) -> bool:
    """Return whether `error` tells of a worker that was killed, as by the system for lack of
    memory.

    torch raises it from a signal handler too, and so at any point of the main process.
    """
    return "DataLoader worker (pid" in str(error)


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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(born_of_main_thread: bool, _worker: int) -> None:
    """Leaves stopping to the main process, which saves first; dies with it, however it dies."""
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Linux sends the signal when the thread that forked ends, not the process
    if born_of_main_thread:
        end_with_parent()


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


def automatic_workers() -> int:
    """Workers that pay for costly images: the cores of this process, at most 8."""
    # torchrun's count of processes on this machine
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, cores() // local_processes))
