"""What a run was made with: versions, git state, machine, command line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tser_cli import __version__

PACKAGES = (
    *("torch", "torchvision", "spikingjelly", "accelerate", "numpy", "pandas"),
    *("safetensors", "scikit-learn", "pydantic"),
)


def environment(seed: int) -> dict[str, Any]:
    """Return versions, git state, machine and command line, for environment.json."""
    import torch  # runs are listed, and their names completed, without it

    return {
        "tser": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "git": _git_state(),
        "command": sys.argv,
        "seed": seed,
        "threads": torch.get_num_threads(),  # the order of sums, and so their last bits
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_state() -> dict[str, Any]:
    package = Path(__file__).resolve().parents[2]
    try:
        # A package installed inside some other project's repository is not part of it.
        if Path(_git(package, "rev-parse", "--show-toplevel")) != package.parent:
            return {}
        changed = bool(_git(package, "status", "--porcelain"))
        return {"commit": _git(package, "rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
