"""Two runs of one network, spike by spike.

A neuron whose potential equals the threshold up to rounding (a tie) may fire in one program and not
in the other, and all that follows in that image may then differ for good reasons. So each image is
followed up to its first difference, in the order of computation; that one must be a tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tser_cli.export.reference import Trace


@dataclass(frozen=True)
class LayerCheck:
    """One spiking layer over all images and steps: how many values, spikes, differing spikes."""

    layer: str
    values: int
    spikes: int
    differing: int


@dataclass(frozen=True)
class Comparison:
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
        """Return whether no spike differs, logits agree within `tolerance`, and an image was
        compared.

        The tolerance is absolute for logits up to 1 and relative to the largest above.
        """
        limit = tolerance * max(1.0, self.logits_scale)
        close = all(gap <= limit for gap in self.logits_difference)  # a NaN is never close
        followed = self.parted < self.images
        return self.differing == 0 and close and followed and self.predictions_differing == 0


def compare(
    truth: Trace,
    logits_TNK: NDArray[np.floating],
    spikes: dict[str, NDArray[np.bool_]],
    tie: float,
) -> Comparison:
    """Compare a run with the truth. Raises ValueError where a layer's spikes are missing."""
    layers = list(truth.spikes)
    if missing := [name for name in layers if name not in spikes]:
        raise ValueError(f"no spikes of {', '.join(missing[:3])}")
    followed_N = np.ones(truth.images, dtype=bool)
    differing = dict.fromkeys(layers, 0)
    for t in range(len(truth.logits_TNK)):
        for name in layers:
            wrong = truth.spikes[name][t] != spikes[name][t]
            wrong[~followed_N] = False
            differing[name] += int((wrong & (truth.distance[name][t] >= tie)).sum())
            followed_N &= ~wrong.reshape(truth.images, -1).any(1)
    gap_TNK = np.abs(truth.logits_TNK - logits_TNK)[:, followed_N]
    truth_N, predicted_N = (logits.mean(0).argmax(-1) for logits in (truth.logits_TNK, logits_TNK))
    near = [truth.distance[name] for name in layers]
    return Comparison(
        layers=tuple(_layer(truth, name, differing[name]) for name in layers),
        images=truth.images,
        parted=int((~followed_N).sum()),
        tie=tie,
        ties=sum(int((distance < tie).sum()) for distance in near),
        least_distance=min(float(distance.min()) for distance in near),
        logits_difference=tuple(float(gap_NK.max(initial=0.0)) for gap_NK in gap_TNK),
        logits_scale=float(np.abs(truth.logits_TNK).max()),
        predictions_differing=int((predicted_N != truth_N)[followed_N].sum()),
    )


def _layer(truth: Trace, name: str, differing: int) -> LayerCheck:
    spikes = truth.spikes[name]
    return LayerCheck(name, spikes.size, int(spikes.sum()), differing)
