"""Training beside other work: in a process of its own, which counts its steps for as long as asked.

    python -m tests.benchmarks.side_by_side       a process that is told seconds, line by line

It trains ResNet-18 on noise of the size of digits, with the threads that torch chooses.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 1.0
BUSY = "while True: pass"
WAITING = ("GOMP_", "KMP_", "OMP_")


class Training:
    """A process that trains while it is asked to."""

    def __init__(self, environment: dict[str, str]) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(WAITING)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.side_by_side"],
            env={**kept, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()  # it is ready

    def begin(self, seconds: float) -> None:
        """Let it train for so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def rate(self) -> float:
        """Wait for its end; steps a second."""
        return float(self._line())

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def busy_core() -> Iterator[None]:
    """Inside, a loop keeps one core of this process busy."""
    core = min(os.sched_getaffinity(0))
    loop = subprocess.Popen(
        [sys.executable, "-S", "-c", BUSY], preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )
    try:
        time.sleep(0.1)
        yield
    finally:
        loop.kill()
        loop.wait()


def rates(environment: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Steps a second of one training alone, of each of two at once, and beside a busy core."""
    found: dict[str, list[float]] = {"alone": [], "two": [], "beside": []}
    first, second = Training(environment), Training(environment)
    try:
        for _ in range(rounds):
            found["alone"].append(_together(first))
            found["two"].append(_together(first, second))
            with busy_core():
                found["beside"].append(_together(first))
    finally:
        first.end()
        second.end()
    return found


def _together(*trainings: Training) -> float:
    for training in trainings:
        training.begin(SECONDS)
    return sum(training.rate() for training in trainings) / len(trainings)


def _make_step() -> Callable[[], object]:
    from tests.benchmarks import subjects
    from tser_cli.data.base import DataSpec

    subjects.SIDE = 8
    labels = tuple(str(label) for label in range(subjects.CLASSES))
    subjects.SPEC = DataSpec("digits", 3, 8, 8, labels, mean=(0.5,) * 3, std=(0.25,) * 3)
    changes: dict[str, Any] = {"method.name": "ce", "training.device": "cpu"}
    return subjects.training_step(subjects.Size(2, 64), changes)


def main() -> None:
    """Train for as long as each line of standard input says, and answer with steps a second."""
    step = _make_step()
    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        steps, began = 0, time.monotonic()
        while time.monotonic() < began + float(line):
            step()
            steps += 1
        print(steps / (time.monotonic() - began), flush=True)


if __name__ == "__main__":
    main()
