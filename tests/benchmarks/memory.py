"""The peak of one process's memory: python -m tests.benchmarks.memory step 6 32 -> megabytes."""

from __future__ import annotations

import resource
import subprocess
import sys

import torch

from tests.benchmarks.subjects import STEPS, Size

STEPS_TAKEN = 2


def peak_megabytes(kind: str, timesteps: int, batch: int) -> float:
    """Of two steps of `kind` in a process of its own: resident memory, or the GPU's."""
    words = [sys.executable, "-m", "tests.benchmarks.memory", kind, str(timesteps), str(batch)]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return float(told.split()[-1])


def main() -> None:
    """Take two steps and print the peak."""
    kind, timesteps, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    step = STEPS[kind](Size(timesteps, batch))
    for _ in range(STEPS_TAKEN):
        step()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 1e6)
        return
    kilobyte = 1 if sys.platform == "darwin" else 1000
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte / 1e6)


if __name__ == "__main__":
    main()
