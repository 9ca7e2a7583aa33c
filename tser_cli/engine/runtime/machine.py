"""What this machine has, one thing at a time, and what to do about what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from tser_cli import __version__

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
