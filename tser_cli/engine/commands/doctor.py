"""Look at this machine: what is here, what works, and what to do about what does not."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

from tser_cli.config import DataConfig
from tser_cli.data import downloads
from tser_cli.engine.runtime import machine, speed
from tser_cli.engine.runtime.machine import NOTE, OK, WRONG, Check
from tser_cli.engine.runtime.speed import Record, Speed
from tser_cli.engine.training.compiling import what_compiling_lacks
from tser_cli.engine.training.precision import WORTH_TAKING, WORTH_TRYING
from tser_cli.errors import DataError
from tser_cli.models.integer import kernels_serve
from tser_cli.operating_system import cores, cpu_has_bf16
from tser_cli.report.progress import Progress, Silent
from tser_cli.sections import PRECISION

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
    yield from (machine.versions(), machine.extras(), machine.processor(cores()))
    yield from (machine.graphics(), machine.threads(torch.get_num_threads(), cores()))
    if hasattr(os, "getloadavg"):
        yield machine.load(os.getloadavg()[0], cores())
    stolen = machine.steal()
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
    yield machine.room("runs", request.runs_dir)
    if missing:
        yield machine.room("downloads", downloads.root(config))


def _place_of(name: str, config: DataConfig) -> Path | None:
    try:
        return downloads.find_downloaded(name, config)
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
    path, name = speed.place(), speed.key(device)
    known, now = speed.best_known(path, name), speed.measure(device)
    if keep:
        speed.keep_best(path, name, now, date.today().isoformat())
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
