"""The peak of one process's memory: python -m tests.benchmarks.memory step 6 32 bf16 resnet18."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import torch

from tests.benchmarks.library import our_step, plain_step
from tests.benchmarks.subjects import STEPS, Size

STEPS_TAKEN = 2


def peak_megabytes(kind: str, size: Size) -> float:
    """Of two steps of `kind` in a process of its own: resident memory, or the GPU's."""
    numbers = [str(size.timesteps), str(size.batch), size.precision, size.student]
    words = [sys.executable, "-m", "tests.benchmarks.memory", kind, *numbers]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return float(told.split()[-1])


def main() -> None:
    """Take two steps and print the peak."""
    kind, timesteps, batch, precision, student = sys.argv[1:]
    step = {**STEPS, "library": our_step, "plain loop": plain_step}[kind](
        Size(int(timesteps), int(batch), precision=precision, student=student)
    )
    for _ in range(STEPS_TAKEN):
        step()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 1e6)
        return
    print(_resident_peak() / 1e6)


def _resident_peak() -> float:
    status = Path("/proc/self/status")
    if status.is_file():
        # not getrusage: on Linux its peak goes back to before exec, to the process that started us
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return float(line.split()[1]) * 1024
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte)


if __name__ == "__main__":
    main()
