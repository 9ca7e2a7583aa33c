"""What this machine has, one thing at a time, and what to do about what it lacks.

How fast this machine computes: a short measurement, and the best one that it ever gave.

Look at this machine: what is here, what works, and what to do about what does not.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import platformdirs
import psutil
import torch
from packaging.requirements import Requirement
from torch import Tensor
from torch.nn import functional as F

from tser_cli.base.errors import DamagedFileError, DataError, TserError
from tser_cli.base.files import make_folder, read_json, write_json
from tser_cli.base.progress import Progress, Silent
from tser_cli.base.system import cores, cpu_has_bf16
from tser_cli.base.version import __version__
from tser_cli.data import builtin
from tser_cli.engine.training.settle import WORTH_TAKING, WORTH_TRYING, what_compiling_lacks
from tser_cli.models.integers import kernels_serve
from tser_cli.settings.config import DataConfig
from tser_cli.settings.sections import PRECISION

OK, NOTE, WRONG = "ok", "note", "wrong"
DISTRIBUTION = "tser-cli"
SHOWN = ("torch", "torchvision", "spikingjelly", "accelerate", "numpy", "pandas")
# What each extra brings that is imported.
EXTRAS = {"nir": ("nir", "nirtorch", "snntorch"), "onnx": ("onnx", "onnxruntime"), "ray": ("ray",)}
BUSY = 0.5  # of the cores taken by others: what is left is half a machine
STOLEN = 0.1  # of the time taken by the host of a virtual machine
LEAST_ROOM = 2**30  # bytes; measured: a ResNet-34 of digits with its checkpoints is 244 MiB
NVIDIA = ("/proc/driver/nvidia/version", "/dev/nvidia0")


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, and what to do about it, "" where all is well.

    `state`: ok; note, where something is missing that may not be needed; wrong.
    """

    name: str
    state: str
    found: str
    advice: str = ""


def versions() -> Check:
    """Look at Python and the packages, and whether these are as new as tser needs them."""
    found = ", ".join(f"{name} {_version(name)}" for name in SHOWN)
    text = f"tser {__version__}, Python {platform.python_version()}, {found}"
    unmet = " ".join(f"'{one}'" for one in unmet_requirements(_stated()))
    return Check("versions", WRONG if unmet else OK, text, unmet and f"pip install {unmet}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _stated() -> list[str]:
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # a checkout that was never installed
        return []


def unmet_requirements(stated: list[str]) -> Iterator[str]:
    """Yield what is not installed, or too old, as pip takes it: torch>=2.11; extras aside."""
    for one in map(Requirement, stated):
        needed = one.marker is None or one.marker.evaluate({"extra": ""})
        found = _version(one.name)
        if needed and (found == "not installed" or not one.specifier.contains(found, True)):
            yield f"{one.name}{one.specifier}"


def extras() -> Check:
    """Look at what can be installed besides."""
    missing = [
        name for name, modules in EXTRAS.items() if not all(find_spec(module) for module in modules)
    ]
    here = [name for name in EXTRAS if name not in missing]
    found = f"installed: {', '.join(here) or 'none'}; not: {', '.join(missing) or 'none'}"
    wanted = f"for tser export and Ray: pip install '{DISTRIBUTION}[{','.join(missing)}]'"
    return Check("extras", NOTE if missing else OK, found, wanted if missing else "")


def processor(usable: int) -> Check:
    """Look at the processor; `usable`: the cores that this process may use."""
    known = cpu_capabilities()
    name = known.get("cpu_name") or platform.processor() or platform.machine()
    memory = psutil.virtual_memory()
    vectors = torch.backends.cpu.get_cpu_capability()
    free, total = memory.available / 2**30, memory.total / 2**30
    found = f"{name}, {usable} of {os.cpu_count()} cores to use, {vectors}"
    return Check("processor", OK, f"{found}, {free:.0f} of {total:.0f} GiB of memory free")


def cpu_capabilities() -> dict[str, object]:
    """Return what torch knows of the processor; {} where it does not tell."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


def graphics() -> Check:
    """Look for GPUs, and for one that torch can't use."""
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        return Check(
            "GPU", OK, ", ".join(f"{c.name} ({c.total_memory / 2**30:.0f} GiB)" for c in cards)
        )
    if any(map(os.path.exists, NVIDIA)):
        built = torch.version.cuda
        advice = (
            "the driver is too old for it, or CUDA_VISIBLE_DEVICES hides the GPU: see nvidia-smi"
            if built
            else "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        )
        return Check("GPU", WRONG, f"there is one that torch (CUDA {built}) can't use", advice)
    return Check("GPU", OK, "none; everything runs on the CPU")


def threads(used: int, usable: int) -> Check:
    """Compare the threads of torch with the cores that this process may use."""
    stated = os.environ.get("OMP_NUM_THREADS")
    found = f"{used} for {usable} cores" + (f" (OMP_NUM_THREADS={stated})" if stated else "")
    if used > usable:
        return Check(
            "threads", WRONG, found, f"they wait for each other: set OMP_NUM_THREADS={usable}"
        )
    if used < usable:
        return Check("threads", NOTE, found, f"OMP_NUM_THREADS={usable} would use all of them")
    return Check("threads", OK, found)


def load(average: float, usable: int) -> Check:
    """Judge the load of the last minute: how many processes wanted a core, on average."""
    found = f"{average:.1f} processes wanted one of {usable} cores in the last minute"
    if average >= BUSY * usable:
        return Check(
            "load",
            WRONG,
            found,
            "other programs slow this one down, and times measured now mean little: wait for them, "
            "or share the cores by OMP_NUM_THREADS",
        )
    return Check("load", OK, found)


def steal() -> Check | None:
    """Look at the time that a virtual machine's host kept for itself; None where none is told."""
    taken = getattr(psutil.cpu_times_percent(interval=0.2), "steal", None)
    if taken is None or taken < 100 * STOLEN:
        return None
    found = f"the host of this virtual machine takes {taken:.0f} % of its time"
    return Check("host", WRONG, found, "a machine with cores of its own is faster")


def room(name: str, folder: Path) -> Check:
    """Look at the free space where `folder` is, or would be made, and whether it can be written."""
    there = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )
    free = shutil.disk_usage(there).free
    found = f"{free / 2**30:,.1f} GiB free at {folder}"
    if not os.access(there, os.W_OK):
        return Check(name, WRONG, f"{there} can't be written", "choose another place, or mend it")
    if free < LEAST_ROOM:
        return Check(name, WRONG, found, "free some space: a run may need some hundred MiB")
    return Check(name, OK, found)


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


DOWNLOADED = ("mnist", "fashion-mnist", "cifar10", "cifar100")
SLOW = 0.6  # of the best that this machine ever gave
SCALES = 0.5  # of what so many threads could do; less is no gain from two


@dataclass(frozen=True)
class DoctorRequest:
    """Where runs and data sets are. `quick`: nothing is compiled and no speed is measured."""

    runs_dir: Path = Path("runs")
    data_dir: str = ""
    quick: bool = False
    progress: Progress = field(default_factory=Silent)


def examine(request: DoctorRequest) -> tuple[Check, ...]:
    """Return everything looked at, in the order of the list."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checks = [*surroundings(), *abilities(device), *places(request)]
    if not request.quick:
        request.progress.say("compiling a function and measuring speed: some ten seconds")
        busy = any(check.name == "load" and check.state == WRONG for check in checks)
        checks += [compiling(device), *speeds(device, keep=not busy)]
    return tuple(checks)


def surroundings() -> Iterator[Check]:
    """Yield what is installed, what hardware there is, and who else uses it."""
    yield from (versions(), extras(), processor(cores()))
    yield from (graphics(), threads(torch.get_num_threads(), cores()))
    if hasattr(os, "getloadavg"):
        yield load(os.getloadavg()[0], cores())
    stolen = steal()
    if stolen is not None:
        yield stolen


def abilities(device: torch.device) -> Iterator[Check]:
    """Yield what the hardware computes by itself: precisions, and integers."""
    yield precision(device)
    serve = kernels_serve()
    yield Check(
        "int8",
        OK if serve else NOTE,
        "students with integer weights are measured with integer arithmetic"
        if serve
        else "there are no exact int8 kernels for this CPU: integers are computed in fp32",
        "" if serve else "nothing need be done: the results are the same, it takes longer",
    )


def precision(device: torch.device) -> Check:
    """Say what `--precision auto` will choose, or on what that depends."""
    if device.type == "cuda":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        auto = f"--precision auto too. The GPU has {'' if half else 'no '}instructions for bf16"
    elif cpu_has_bf16():
        auto = (
            f"--precision auto takes bf16 for a training of {WORTH_TRYING:,} images or more "
            f"(images x epochs) whose step, tried before, takes at most {WORTH_TAKING:g} of its "
            "time in fp32. The CPU has instructions for bf16"
        )
    else:
        auto = "--precision auto too: the CPU has no instructions for bf16"
    found = f"{PRECISION} where none is named; {auto}"
    return Check("precision", OK, found)


def places(request: DoctorRequest) -> Iterator[Check]:
    """Yield which data sets are here, and how much room there is."""
    config = DataConfig(dir=request.data_dir)
    found = {name: _place_of(name, config) for name in DOWNLOADED}
    here = ["digits", *(f"{name} ({place})" for name, place in found.items() if place is not None)]
    missing = [name for name, place in found.items() if place is None]
    later = f"; downloaded when first used: {', '.join(missing)}" if missing else ""
    yield Check("data sets", OK, f"here: {', '.join(here)}{later}")
    yield room("runs", request.runs_dir)
    if missing:
        yield room("downloads", builtin.root(config))


def _place_of(name: str, config: DataConfig) -> Path | None:
    try:
        return builtin.find_downloaded(name, config)
    except (DataError, OSError):  # a folder that is closed, or none
        return None


def compiling(device: torch.device) -> Check:
    """Try torch.compile on a small function: whether it works is not known before."""
    lacks = what_compiling_lacks(device)
    if lacks:
        return Check("torch.compile", NOTE, f"it needs {lacks}", "install it; tser works without")
    ones = torch.ones(8, device=device)
    try:
        with _hushed():
            result = torch.compile(lambda values: torch.relu(values) * 2 + 1)(ones)
    except Exception as error:  # whatever a compiler that is there, but broken, runs into
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return Check(
            "torch.compile",
            NOTE,
            f"it fails here: {told}",
            "tser works without; performance.compile = off never tries it",
        )
    right = torch.equal(result, ones * 3)
    return Check("torch.compile", OK if right else WRONG, "it works" if right else "wrong results")


@contextmanager
def _hushed() -> Iterator[None]:
    # what torch tells of the compiler on the way is no news: it works in the end, or it does not
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def speeds(device: torch.device, keep: bool) -> tuple[Check, ...]:
    """Measure this machine and compare with the best that it ever gave.

    `keep`: that is kept, to compare with later; not on a machine that has other work to do.
    """
    path, name = place(), key(device)
    known, now = best_known(path, name), measure(device)
    if keep:
        keep_best(path, name, now, date.today().isoformat())
    count = 1 if device.type == "cuda" else torch.get_num_threads()
    scaling = [] if count == 1 else [judged_scaling(now, count)]
    return (judged_speed(now, known, path if keep else None), *scaling)


def judged_speed(now: Speed, known: Record | None, path: Path | None) -> Check:
    """Compare a measurement with the best one of the same machine, torch and threads.

    `path`: where it is kept, None where it is not.
    """
    found = (
        f"{now.matmul:,.0f} GFLOP/s in products of matrices, {now.convolution:,.0f} in "
        "convolutions (fp32)"
    )
    if known is None:
        kept = f"kept in {path}, to compare with next time"
        return Check("speed", OK, f"{found}; {kept if path else 'not kept, see load'}")
    share = min(now.matmul / known.speed.matmul, now.convolution / known.speed.convolution)
    then = (
        f"{found}; the best here was {known.speed.matmul:,.0f} and "
        f"{known.speed.convolution:,.0f}, on {known.day}"
    )
    if share < SLOW:
        return Check(
            "speed",
            WRONG,
            then,
            f"it has {100 * share:.0f} % of its speed: look for other programs, heat, or a "
            "virtual machine whose cores are shared",
        )
    return Check("speed", OK, then)


def judged_scaling(now: Speed, count: int) -> Check:
    """Compare all threads with one: twice the threads should do about twice the work."""
    factor = now.matmul / now.one_thread
    found = f"{count} threads do {factor:.1f} times what one does, both measured now"
    if factor < SCALES * count:
        advice = "cores are shared with other programs, or two threads with one core"
        return Check("scaling", NOTE, found, f"{advice}: try OMP_NUM_THREADS={max(1, count // 2)}")
    return Check("scaling", OK, found)
