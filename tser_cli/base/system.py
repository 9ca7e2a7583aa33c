"""What Python's library lacks: cores, ends of processes, calls that fit, what may not change."""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tser_cli.base.errors import ConfigError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
KILLED = 128 + signal.SIGKILL  # the exit code that a shell reports for a killed process


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    # a container, or taskset, may give fewer than the machine has
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 itself (AVX-512 BF16 or AMX); only Linux tells."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return not words.isdisjoint(("avx512_bf16", "amx_bf16"))


def end_with_parent(parent: int | None = None) -> None:
    """Let Linux kill this process when its parent process ends, however that ends.

    `parent`: the parent's process id, where it is known. If that parent has ended already, this
    process ends at once. Elsewhere than on Linux nothing is done.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the call above: then no signal would ever come.
    if parent is not None and os.getppid() != parent:
        os._exit(KILLED)


def call_fault(function: Callable[..., Any], *given: Any, **named: Any) -> str:
    """Return why `function` can't be called so, by its signature; "" where it can, or has none."""
    try:
        inspect.signature(function).bind(*given, **named)
    except TypeError as error:
        return str(error)
    except ValueError:
        pass  # a function in C, say, has no signature to ask: the call itself tells
    return ""


@contextmanager
def process_unchanged() -> Iterator[None]:
    """Raise ConfigError where the block changes what all of this process relies on.

    That is the current folder, from which all paths are found, and torch's default type, in which
    all networks are made.
    """
    # undone as well, since the process may go on: in Python, or at a shell's completion
    here = Path.cwd()
    yield
    if Path.cwd() != here:
        os.chdir(here)
        raise ConfigError("it changes the current folder, from which all paths are found")
    torch = sys.modules.get("torch")  # not imported for this: that takes a second
    default = torch.get_default_dtype() if torch is not None else None
    if torch is not None and default != torch.float32:
        torch.set_default_dtype(torch.float32)
        raise ConfigError(f"it changes torch's default type to {default}; all networks are float32")
