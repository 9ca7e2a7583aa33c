"""From counts to energy: operations x what one of them costs.

The headline is macs x mac_pj + value x ac_pj, over convolutions and linear layers alone. Batch
norm is folded into the weights; biases, pooling, the additions of residual branches and neuron
updates are not in it. All figures are in pJ.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tser_cli.energy.counts import Counts, FloatArray, IntArray, LayerCounts
from tser_cli.energy.profiles import Profile


def operations(counts: Counts) -> tuple[IntArray, IntArray]:
    """Multiply-accumulates [T] and accumulates [T, I] of all layers, exact, per image and step."""
    macs_T = sum((layer.step_macs for layer in counts.layers), np.zeros(counts.timesteps, np.int64))
    shape = (counts.timesteps, counts.images)
    acs_TI = sum((layer.value_TI for layer in counts.layers), np.zeros(shape, np.int64))
    return macs_T, acs_TI


def priced(macs: Any, acs: Any, profile: Profile) -> Any:
    """Price operations, numbers, arrays or tensors: macs x mac_pj + acs x ac_pj, in pJ."""
    return macs * profile.mac_pj + acs * profile.ac_pj


def energy_per_step(counts: Counts, profile: Profile) -> FloatArray:
    """Energy of each image at each step alone, pJ [T, I]; a stem computed once is at step 1."""
    macs_T, acs_TI = operations(counts)
    energy_TI: FloatArray = priced(macs_T[:, None], acs_TI, profile)
    return energy_TI


def energy_up_to(counts: Counts, profile: Profile) -> FloatArray:
    """Energy of each image up to and with each step, pJ [T, I]: what stopping there costs."""
    macs_T, acs_TI = operations(counts)
    macs_T, acs_TI = macs_T.cumsum(), acs_TI.cumsum(axis=0)
    energy_TI: FloatArray = priced(macs_T[:, None], acs_TI, profile)
    return energy_TI


def mean_energy(counts: Counts, profile: Profile) -> float:
    """Energy of the whole network over all steps, pJ, mean per image: the headline."""
    macs_T, acs_TI = operations(counts)
    energy: float = priced(int(macs_T.sum()), int(acs_TI.sum()) / counts.images, profile)
    return energy


def ann_macs(counts: Counts) -> int:
    """Multiply-accumulates per image of the ANN of the same shape: every layer once, dense.

    Border-aware like the synaptic operations it is compared with (see `Geometry.macs`), so that
    an SNN whose every input spikes at a single step counts exactly as many operations.
    """
    return sum(counts.layer.macs for counts in counts.layers)


def stem_energy(counts: Counts, profile: Profile) -> dict[str, float]:
    """Energy of the stem per image, pJ, computed once an image and at every time step."""
    once = sum(layer.layer.macs for layer in counts.stem) * profile.mac_pj
    return {"once": once, "per_step": once * counts.timesteps}


def formula_operations(layer: LayerCounts) -> FloatArray:
    """Return the papers' firing rate x FLOP of each step, [T], mean per image; its sum has their
    x T.

    The rate is that of the layer's inputs, the FLOP are `macs_formula`, padding included. 0 where
    real values drive the layer: its formula energy is `macs_formula` x mac_pj.
    """
    if not layer.layer.accumulates:
        return np.zeros(len(layer.executed_T))
    rate_T: FloatArray = layer.nonzero_TI.mean(axis=1) / layer.layer.neurons_in
    return rate_T * layer.layer.macs_formula
