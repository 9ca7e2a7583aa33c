"""Look at this machine: what is here, what works, and what to do about what does not."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from tser_cli.base import __version__
from tser_cli.base.errors import DataError, first_line
from tser_cli.base.system import cores, cpu_has_bf16
from tser_cli.data import builtin
from tser_cli.engine.runs.folder import version_of
from tser_cli.engine.training.settle import WORTH_TAKING, WORTH_TRYING, what_compiling_lacks
from tser_cli.models.integers import kernels_serve
from tser_cli.settings.config import PRECISION, DataConfig
from tser_cli.settings.wing_options import DoctorRequest

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
class Checkup:
    """One thing looked at: what was found, and what to do about it, "" where all is well.

    `state`: ok; note, where something is missing that may not be needed; wrong.
    """

    name: str
    state: str
    found: str
    advice: str = ""


def versions() -> Checkup:
    """Look at Python and the packages, and whether these are as new as tser needs them."""
    found = ", ".join(f"{name} {version_of(name)}" for name in SHOWN)
    text = f"tser {__version__}, Python {platform.python_version()}, {found}"
    try:
        stated = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # a checkout that was never installed
        stated = []
    unmet = " ".join(f"'{one}'" for one in unmet_requirements(stated))
    return Checkup("versions", WRONG if unmet else OK, text, unmet and f"pip install {unmet}")


def unmet_requirements(stated: list[str]) -> Iterator[str]:
    """Yield what is not installed, or too old, as pip takes it: torch>=2.11; extras aside."""
    for one in map(Requirement, stated):
        # extras have a check of their own
        needed = one.marker is None or one.marker.evaluate({"extra": ""})
        found = version_of(one.name)
        # True: a pre-release, such as torch's nightly builds, will do
        if needed and (found == "not installed" or not one.specifier.contains(found, True)):
            yield f"{one.name}{one.specifier}"


def extras() -> Checkup:
    """Look at what can be installed besides."""
    # looked for, not imported: some take seconds
    missing = [extra for extra, modules in EXTRAS.items() if not all(map(find_spec, modules))]
    here = [name for name in EXTRAS if name not in missing]
    found = f"installed: {', '.join(here) or 'none'}; not: {', '.join(missing) or 'none'}"
    wanted = f"for tser export and Ray: pip install '{DISTRIBUTION}[{','.join(missing)}]'"
    return Checkup("extras", NOTE if missing else OK, found, wanted if missing else "")


def processor(usable: int) -> Checkup:
    """Look at the processor; `usable`: the cores that this process may use."""
    # older versions of torch, and some platforms, don't tell
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    name = known.get("cpu_name") or platform.processor() or platform.machine()
    memory = psutil.virtual_memory()
    vectors = torch.backends.cpu.get_cpu_capability()
    free, total = memory.available / 2**30, memory.total / 2**30
    found = f"{name}, {usable} of {os.cpu_count()} cores to use, {vectors}"
    return Checkup("processor", OK, f"{found}, {free:.0f} of {total:.0f} GiB of memory free")


def graphics() -> Checkup:
    """Look for GPUs, and for one that torch can't use."""
    if torch.cuda.is_available():
        cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        found = ", ".join(f"{card.name} ({card.total_memory / 2**30:.0f} GiB)" for card in cards)
        return Checkup("GPU", OK, found)
    # files, since no tool of NVIDIA's need be installed in a container
    if any(map(os.path.exists, NVIDIA)):
        built = torch.version.cuda
        advice = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        if built:
            advice = "its driver is too old, or CUDA_VISIBLE_DEVICES hides the GPU: see nvidia-smi"
        return Checkup("GPU", WRONG, f"there is one that torch (CUDA {built}) can't use", advice)
    return Checkup("GPU", OK, "none; everything runs on the CPU")


def threads(used: int, usable: int) -> Checkup:
    """Compare the threads of torch with the cores that this process may use."""
    stated = os.environ.get("OMP_NUM_THREADS")
    found = f"{used} for {usable} cores" + (f" (OMP_NUM_THREADS={stated})" if stated else "")
    state, advice = OK, ""
    if used > usable:
        state, advice = WRONG, f"they wait for each other: set OMP_NUM_THREADS={usable}"
    elif used < usable:
        state, advice = NOTE, f"OMP_NUM_THREADS={usable} would use all of them"
    return Checkup("threads", state, found, advice)


def load(average: float, usable: int) -> Checkup:
    """Judge the load of the last minute: how many processes wanted a core, on average."""
    found = f"{average:.1f} processes wanted one of {usable} cores in the last minute"
    if average < BUSY * usable:
        return Checkup("load", OK, found)
    advice = (
        "other programs slow this one down, and times measured now mean little: wait for them, or "
        "share the cores by OMP_NUM_THREADS"
    )
    return Checkup("load", WRONG, found, advice)


def steal() -> Iterator[Checkup]:
    """Yield how much time a virtual machine's host kept for itself, where that is much."""
    # over an interval: the sums since the start say nothing of now
    taken = getattr(psutil.cpu_times_percent(interval=0.2), "steal", None)
    if taken is not None and taken >= 100 * STOLEN:
        found = f"the host of this virtual machine takes {taken:.0f} % of its time"
        yield Checkup("host", WRONG, found, "a machine with cores of its own is faster")


def room(name: str, folder: Path) -> Checkup:
    """Look at the free space where `folder` is, or would be made, and whether it can be written."""
    whole = folder.absolute()
    # a folder that is not made yet will lie on the disk of its nearest parent
    there = next(place for place in (whole, *whole.parents) if place.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / 2**30:,.1f} GiB free at {folder}"
    if not os.access(there, os.W_OK):
        return Checkup(name, WRONG, f"{there} can't be written", "choose another place, or mend it")
    if free < LEAST_ROOM:
        return Checkup(name, WRONG, found, "free some space: a run may need some hundred MiB")
    return Checkup(name, OK, found)


DOWNLOADED = ("mnist", "fashion-mnist", "cifar10", "cifar100")


def examine(request: DoctorRequest) -> tuple[Checkup, ...]:
    """Return everything looked at, in the order of the list."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checks = [versions(), extras(), processor(cores()), graphics()]
    checks.append(threads(torch.get_num_threads(), cores()))
    if hasattr(os, "getloadavg"):  # not on Windows
        checks.append(load(os.getloadavg()[0], cores()))
    checks += [*steal(), *abilities(device), *places(request)]
    # last, since it takes longest; the checks before are lost to nobody who stops it
    if not request.quick:
        request.progress.say("compiling a function: some ten seconds")
        checks.append(compiling(device))
    return tuple(checks)


def abilities(device: torch.device) -> Iterator[Checkup]:
    """Yield what the hardware computes by itself: precisions, and integers."""
    yield precision(device)
    if kernels_serve():
        found = "students with integer weights are measured with integer arithmetic"
        yield Checkup("int8", OK, found)
    else:
        found = "there are no exact int8 kernels for this CPU: integers are computed in fp32"
        advice = "nothing need be done: the results are the same, it takes longer"
        yield Checkup("int8", NOTE, found, advice)


def precision(device: torch.device) -> Checkup:
    """Say what `--precision auto` will choose, or on what that depends."""
    if device.type == "cuda":
        # emulated bf16 is slower than fp32
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
    return Checkup("precision", OK, f"{PRECISION} where none is named; {auto}")


def places(request: DoctorRequest) -> Iterator[Checkup]:
    """Yield which data sets are here, and how much room there is."""
    config = DataConfig(dir=request.data_dir or "")
    # looked for, not loaded: nothing is downloaded to find out
    found: dict[str, Path | None] = dict.fromkeys(DOWNLOADED)
    for name in DOWNLOADED:
        with suppress(DataError, OSError):  # a folder that is closed, or none
            found[name] = builtin.find_downloaded(name, config)
    here = ["digits", *(f"{name} ({place})" for name, place in found.items() if place is not None)]
    missing = [name for name, place in found.items() if place is None]
    later = f"; downloaded when first used: {', '.join(missing)}" if missing else ""
    yield Checkup("data sets", OK, f"here: {', '.join(here)}{later}")
    yield room("runs", request.runs_dir)
    if missing:
        yield room("downloads", builtin.root(config))


def compiling(device: torch.device) -> Checkup:
    """Try torch.compile on a small function: whether it works is not known before."""
    lacks = what_compiling_lacks(device)
    if lacks:
        return Checkup("torch.compile", NOTE, f"it needs {lacks}", "install it; tser works without")
    # on real values: some compilers build what computes wrongly
    ones = torch.ones(8, device=device)
    # what torch tells of the compiler on the way is no news: it works in the end, or it does not
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = torch.compile(lambda values: torch.relu(values) * 2 + 1)(ones)
    except Exception as error:  # whatever a compiler that is there, but broken, runs into
        told = first_line(error) or type(error).__name__
        advice = "tser works without; performance.compile = off never tries it"
        return Checkup("torch.compile", NOTE, f"it fails here: {told}", advice)
    finally:
        logging.disable(logging.NOTSET)
    if torch.equal(result, ones * 3):
        return Checkup("torch.compile", OK, "it works")
    return Checkup("torch.compile", WRONG, "wrong results")
