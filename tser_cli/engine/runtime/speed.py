"""How fast this machine computes: a short measurement, and the best one that it ever gave."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.engine.runtime.machine import cpu_capabilities
from tser_cli.errors import DamagedFileError, TserError
from tser_cli.files import make_folder, read_json, write_json

SIDE = 1024  # of the matrices; on a GPU eight times as large
CHANNELS, IMAGES, PIXELS = 64, 32, 32
SECONDS = 1.5  # a measurement
FEWEST = 3
Clock = Callable[[], float]
Work = Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """Billions of floating-point operations a second (one multiply-add is two), in fp32.

    `matmul`: of square matrices. `convolution`: 3 x 3, 64 channels, 32 x 32 pixels. `one_thread`:
    matrices on one thread; on a GPU the same as `matmul`. Each is the best of repetitions, that is
    the least disturbed.
    """

    matmul: float
    convolution: float
    one_thread: float


def measure(device: torch.device, clock: Clock = time.perf_counter) -> Speed:
    """Measure for a few seconds."""
    matmul, flop = matrices(device)
    convolve, convolution_flop = convolution(device)
    threads = torch.get_num_threads()
    fast = flop / best_seconds(matmul, clock) / 1e9
    convolved = convolution_flop / best_seconds(convolve, clock) / 1e9
    if device.type != "cpu" or threads == 1:
        return Speed(fast, convolved, fast)
    torch.set_num_threads(1)
    try:
        alone = flop / best_seconds(matmul, clock) / 1e9
    finally:
        torch.set_num_threads(threads)
    return Speed(fast, convolved, alone)


def matrices(device: torch.device) -> tuple[Work, float]:
    """Return the product of two square matrices, and its floating-point operations: 2 n^3."""
    side = SIDE if device.type == "cpu" else 8 * SIDE
    a, b = torch.ones(2, side, side, device=device)
    return _finished(lambda: a @ b, device), 2.0 * side**3


def convolution(device: torch.device) -> tuple[Work, float]:
    """Return a convolution, and its operations: 2 N H W C_in C_out 9."""
    images = torch.ones(IMAGES, CHANNELS, PIXELS, PIXELS, device=device)
    weight = torch.ones(CHANNELS, CHANNELS, 3, 3, device=device)
    last = {"memory_format": torch.channels_last}
    images, weight = images.to(**last), weight.to(**last)  # type: ignore[call-overload]
    flop = 2.0 * IMAGES * PIXELS**2 * CHANNELS**2 * 9
    return _finished(lambda: F.conv2d(images, weight, padding=1), device), flop


def _finished(work: Callable[[], Tensor], device: torch.device) -> Work:
    def run() -> None:
        with torch.inference_mode():
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    return run


def best_seconds(work: Work, clock: Clock = time.perf_counter) -> float:
    """Return the shortest of the repetitions of `work` in a second or two, the first left out."""
    work()
    began, spent = clock(), list[float]()
    while len(spent) < FEWEST or clock() - began < SECONDS:
        before = clock()
        work()
        spent.append(clock() - before)
    return max(min(spent), 1e-9)


@dataclass(frozen=True)
class Record:
    """The best speed that a machine ever gave, and on which day."""

    speed: Speed
    day: str


def place() -> Path:
    """Return the file of records, in the platform's cache folder."""
    return Path(platformdirs.user_cache_dir("tser")) / "speed.json"


def key(device: torch.device) -> str:
    """Return what measurements are compared by: machine, processor, torch, threads or GPU."""
    name = cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    parts = (platform.node(), str(name), f"torch {torch.__version__}")
    return ", ".join([*parts, f"{torch.get_num_threads()} threads"])


def best_known(path: Path, name: str) -> Record | None:
    """Return the record of a key, None where there is none or it can't be read."""
    entry = _records(path).get(name)
    try:
        record = Record(Speed(**entry["speed"]), str(entry["day"]))  # type: ignore[index]
        return record if all(of > 0 for of in asdict(record.speed).values()) else None
    except (KeyError, TypeError):
        return None


def keep_best(path: Path, name: str, speed: Speed, day: str) -> None:
    """Record `speed` where none of that key was better; not being able to write is no error."""
    known = best_known(path, name)
    if known is not None and known.speed.matmul >= speed.matmul:
        return
    try:
        make_folder(path.parent)
        entry = {"speed": asdict(speed), "day": day}
        write_json(path, {**_records(path), name: entry})
    except TserError:
        return


def _records(path: Path) -> Mapping[str, Any]:
    try:
        return read_json(path)
    except DamagedFileError:  # or there is none
        return {}
