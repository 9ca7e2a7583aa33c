"""Load an exported file in other programs, and compare every spike with the student's own.

The truth is the student in float64: its spikes, and how near each potential was to the threshold. A
neuron whose potential equals the threshold up to rounding (a tie) may fire in one program and not
in the other, and all that follows in that image may then differ for good reasons. So each image is
followed up to its first difference, in the order of computation; that one must be a tie. Each
program runs in a process of its own, which finds nothing of this package.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tser_cli.base.errors import ExportError
from tser_cli.export import consumers
from tser_cli.export.graph import Array, Graph, Neuron
from tser_cli.models.base import Classifier
from tser_cli.models.neurons import SpikingNeuron

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


def verify(
    content: bytes, format_name: str, truth: Recording, images_NCHW: Tensor
) -> tuple[ProgramCheck, ...]:
    """Run `content` in every program of its format. Raises ExportError where one can't read it."""
    checks = []
    with tempfile.TemporaryDirectory() as folder:
        path, images = Path(folder, "export"), Path(folder, "images.npz")
        path.write_bytes(content)
        steps = len(truth.logits_TNK)
        np.savez(images, images_NCHW=images_NCHW.cpu().numpy(), timesteps=steps)
        for target in TARGETS[format_name]:
            spikes = run(target.library, path, images)
            # what is left is by the name of a layer
            logits_TNK = spikes.pop("logits_TNK")
            versions = {package: _version(package) or "" for package in target.packages}
            comparison = compare(truth, logits_TNK, spikes, target.tie)
            checks.append(ProgramCheck(target, versions, comparison))
    return tuple(checks)


@dataclass(frozen=True)
class ProgramCheck:
    """What one program made of the file."""

    target: Target
    versions: dict[str, str]
    comparison: SpikeComparison

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


@dataclass(frozen=True, eq=False)
class Recording:
    """What a run over T steps did; by layer, [T, N, ...], the spikes and |h - threshold|."""

    logits_TNK: Array
    spikes: dict[str, NDArray[np.bool_]]
    distance: dict[str, NDArray[np.float32]]

    @property
    def images(self) -> int:
        """Return the number of images."""
        return int(self.logits_TNK.shape[1])


@torch.no_grad()
def record(model: Classifier, graph: Graph, images_NCHW: Tensor) -> Recording:
    """Run a float64 copy of `model` itself, norms unfolded, over the graph's number of steps.

    The potentials are computed again from the neurons' input by the equations of `graph`, which
    must give the spikes that the network gave: AssertionError otherwise.
    """
    # float64: rounding then lies far below any distance to a threshold that is not a tie
    # with its norms unfolded: the folding is then checked as well
    twin = copy.deepcopy(model).double().cpu().eval()
    twin.stem_once = False  # so that all neurons are fed with all steps
    steps = graph.facts.timesteps
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in twin.named_modules():
        if isinstance(module, SpikingNeuron):

            def keep(_: nn.Module, args: tuple[Any, ...], spikes: Tensor, name: str = name) -> None:
                kept[name] = (args[0], spikes)

            module.register_forward_hook(keep)
    logits_TNK = twin(images_NCHW.double().cpu(), steps)
    spikes, distance = {}, {}
    for neuron in graph.neurons:
        x_T, fired_T = (
            tensor.reshape(steps, -1, *neuron.shape).numpy() for tensor in kept[neuron.name]
        )
        charged_T = charges(x_T, neuron)
        assert np.array_equal(charged_T >= neuron.threshold, fired_T != 0), neuron.name
        # float32 will do: it takes few digits to tell a distance from a tie
        spikes[neuron.name] = fired_T != 0
        distance[neuron.name] = np.abs(charged_T - neuron.threshold).astype(np.float32)
    return Recording(logits_TNK.numpy(), spikes, distance)


def charges(x_T: Array, neuron: Neuron) -> Array:
    """Membrane potentials before each reset, [T, ...], by the neuron's equations."""
    voltage = np.full_like(x_T[0], neuron.rest)
    charged_T = np.empty_like(x_T)
    for t, x in enumerate(x_T):
        charged = neuron.rest + neuron.leak * (voltage - neuron.rest) + neuron.gain * x
        fired = charged >= neuron.threshold
        charged_T[t] = charged
        if neuron.reset is None:
            voltage = charged - neuron.threshold * fired
        else:
            voltage = np.where(fired, neuron.reset, charged)
    return charged_T


@dataclass(frozen=True)
class LayerCheck:
    """One spiking layer over all images and steps: how many values, spikes, differing spikes."""

    layer: str
    values: int
    spikes: int
    differing: int


@dataclass(frozen=True)
class SpikeComparison:
    """How far two runs agree. `differing`: spikes that differ away from ties.

    `ties`: potentials within `tie` of the threshold; `parted`: images that differ from a tie on,
    whose later spikes and logits are not compared. `logits_difference`: the largest, a step.
    """

    layers: tuple[LayerCheck, ...]
    images: int
    parted: int
    tie: float
    ties: int
    least_distance: float
    logits_difference: tuple[float, ...]
    logits_scale: float
    predictions_differing: int

    @property
    def values(self) -> int:
        """Return the number of spikes and silences compared."""
        return sum(layer.values for layer in self.layers)

    @property
    def differing(self) -> int:
        """Spikes that differ away from ties, over all layers."""
        return sum(layer.differing for layer in self.layers)

    @property
    def silent(self) -> tuple[str, ...]:
        """Return the layers that never spiked: nothing of what they feed was tried."""
        return tuple(layer.layer for layer in self.layers if layer.spikes == 0)

    def holds(self, tolerance: float) -> bool:
        """Return whether no spike differs, logits agree, and an image was compared.

        The tolerance is absolute for logits up to 1 and relative to the largest above.
        """
        limit = tolerance * max(1.0, self.logits_scale)
        close = all(gap <= limit for gap in self.logits_difference)  # a NaN is never close
        followed = self.parted < self.images
        return self.differing == 0 and close and followed and self.predictions_differing == 0


def compare(
    truth: Recording,
    logits_TNK: NDArray[np.floating],
    found: dict[str, NDArray[np.bool_]],
    tie: float,
) -> SpikeComparison:
    """Compare a run with the truth. Raises ValueError where a layer's spikes are missing."""
    layers = list(truth.spikes)
    if missing := [name for name in layers if name not in found]:
        raise ValueError(f"no spikes of {', '.join(missing[:3])}")
    # In the order of computation: what follows a first difference may differ for good reasons.
    followed_N = np.ones(truth.images, dtype=bool)
    differing = dict.fromkeys(layers, 0)
    for t in range(len(truth.logits_TNK)):
        for name in layers:
            wrong = truth.spikes[name][t] != found[name][t]
            # an image that parted at a tie is followed no further
            wrong[~followed_N] = False
            differing[name] += int((wrong & (truth.distance[name][t] >= tie)).sum())
            followed_N &= ~wrong.reshape(truth.images, -1).any(1)
    gap_TNK = np.abs(truth.logits_TNK - logits_TNK)[:, followed_N]
    truth_N, predicted_N = (logits.mean(0).argmax(-1) for logits in (truth.logits_TNK, logits_TNK))
    # over all images, those that parted too: it says how near to ties this network runs
    near = [truth.distance[name] for name in layers]
    return SpikeComparison(
        layers=tuple(
            LayerCheck(name, spikes.size, int(spikes.sum()), differing[name])
            for name, spikes in truth.spikes.items()
        ),
        images=truth.images,
        parted=int((~followed_N).sum()),
        tie=tie,
        ties=sum(int((distance < tie).sum()) for distance in near),
        least_distance=min(float(distance.min()) for distance in near),
        logits_difference=tuple(float(gap_NK.max(initial=0.0)) for gap_NK in gap_TNK),
        logits_scale=float(np.abs(truth.logits_TNK).max()),
        predictions_differing=int((predicted_N != truth_N)[followed_N].sum()),
    )


def missing_packages(format_name: str) -> list[str]:
    """Return the packages that the checks of a format need and that are not installed."""
    packages = {package for target in TARGETS[format_name] for package in target.packages}
    return sorted(package for package in packages if _version(package) is None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
