"""Load an exported file in other programs, each in a process of its own, and compare its spikes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tser_cli.errors import ExportError
from tser_cli.export import consumers
from tser_cli.export.compare import Comparison, compare
from tser_cli.export.reference import Trace

TOLERANCE = 1e-5  # of logits


@dataclass(frozen=True)
class Target:
    """A program that reads a format. `tie`: potentials this near the threshold are ties.

    In float64 rounding stays below 1e-12; a float32 sum of some thousand products below 1e-5.
    """

    library: str
    packages: tuple[str, ...]
    precision: str
    tie: float


TARGETS: dict[str, tuple[Target, ...]] = {
    "nir": (
        Target("snntorch", ("snntorch", "nirtorch", "nir"), "float64", 1e-9),
        Target("spikingjelly", ("spikingjelly", "nirtorch", "nir"), "float64", 1e-9),
    ),
    "onnx": (Target("onnxruntime", ("onnxruntime", "onnx"), "float32", 1e-5),),
    # its constants are float32, so that potentials differ as in float32
    "safetensors": (Target("safetensors", ("safetensors", "torch"), "float64", 1e-5),),
}


@dataclass(frozen=True)
class Check:
    """What one program made of the file."""

    target: Target
    versions: dict[str, str]
    comparison: Comparison

    @property
    def holds(self) -> bool:
        """Return whether the program gave the student's spikes and logits."""
        return self.comparison.holds(TOLERANCE)

    def described(self) -> dict[str, Any]:
        """Return all figures, for JSON."""
        comparison = self.comparison
        return {
            "library": self.target.library,
            "versions": self.versions,
            "precision": self.target.precision,
            "holds": self.holds,
            "values": comparison.values,
            "differing_spikes": comparison.differing,
            "logits_tolerance": TOLERANCE,
            **asdict(comparison),
        }


def missing_packages(format_name: str) -> list[str]:
    """Return the packages that the checks of a format need and that are not installed."""
    packages = {package for target in TARGETS[format_name] for package in target.packages}
    return sorted(package for package in packages if _version(package) is None)


def verify(
    content: bytes, format_name: str, truth: Trace, images_NCHW: Tensor
) -> tuple[Check, ...]:
    """Run `content` in every program of its format. Raises ExportError where one can't read it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "export").write_bytes(content)
        np.savez(
            place / "images.npz",
            images_NCHW=images_NCHW.cpu().numpy(),
            timesteps=len(truth.logits_TNK),
        )
        return tuple(_check(target, place, truth) for target in TARGETS[format_name])


def _check(target: Target, place: Path, truth: Trace) -> Check:
    result = run(target.library, place / "export", place / "images.npz")
    logits_TNK = result.pop("logits_TNK")
    versions = {package: _version(package) or "" for package in target.packages}
    return Check(target, versions, compare(truth, logits_TNK, result, target.tie))


def run(library: str, path: Path, images: Path) -> dict[str, NDArray[Any]]:
    """Logits and spikes of a file in `library`, from a new process. Raises ExportError."""
    output = images.with_name(f"{library}.npz")
    # -P: a program of its own, that does not find this package beside it
    command = [sys.executable, "-P", consumers.__file__, library, str(path), str(images)]
    done = subprocess.run([*command, str(output)], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        raise ExportError(
            f"{library} can't run the exported file: {said[-1]}. Nothing was written; "
            "--no-verify writes it unchecked"
        )
    with np.load(output) as arrays:
        return dict(arrays)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
