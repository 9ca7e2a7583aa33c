"""Fair clocks: what is compared alternates in one process, so that other work slows all alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Median and range of the ratios of neighbours in time, and how many there were."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> Ratio:
        """From one value a round."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self) -> str:
        """`1.03 (0.99 to 1.07, n = 7)`."""
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g}, n = {self.rounds})"


def seconds(work: Work) -> float:
    """Wall time of one call, with the GPU's work done."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def alternate(works: Mapping[str, Work], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each, round by round: a, b, a, b, ..."""
    for _ in range(warm_up):
        for work in works.values():
            work()
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            spent[name].append(seconds(work))
    return spent


def ratio(above: list[float], below: list[float]) -> Ratio:
    """Of each round's two times."""
    return Ratio.of([a / b for a, b in zip(above, below, strict=True)])


def added(above: list[float], below: list[float]) -> Ratio:
    """What the one takes more than the other in each round, in per cent."""
    return Ratio.of([100 * (a / b - 1) for a, b in zip(above, below, strict=True)])


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, and then on as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def command(*words: str) -> Work:
    """A Python process of its own, to its end; it keeps compiled modules, as Python does."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    line = [sys.executable, *words]
    return lambda: subprocess.run(line, check=True, capture_output=True, env=kept)
