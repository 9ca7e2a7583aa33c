"""From counts to energy: operations x what one of them costs.

The headline is macs x mac_pj + value x ac_pj, over convolutions and linear layers alone. Batch
norm is folded into the weights; biases, pooling, the additions of residual branches and neuron
updates are not in it. All figures are in pJ.

Beside it stand totals of their own: memory traffic, and the ANN of the same shape under several
assumptions, since one favourable figure misleads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tser_cli.energy.counts import REAL, Counts, FloatArray, IntArray, LayerCounts
from tser_cli.energy.prices import HOROWITZ, INT8_PROFILE, PROFILES, Profile


def operations(counts: Counts) -> tuple[IntArray, IntArray, IntArray]:
    """Multiply-accumulates [T] and accumulates [T, I] of all layers, exact, per image and step.

    The last are those of the accumulates, [T, I], whose sums 16 bits hold.
    """
    macs_T = sum((layer.step_macs for layer in counts.layers), np.zeros(counts.timesteps, np.int64))
    # Integers: the order of layers, batches and processes can't change a sum.
    shape = (counts.timesteps, counts.images)
    acs_TI = sum((layer.value_TI for layer in counts.layers), np.zeros(shape, np.int64))
    narrow = (layer.value_TI for layer in counts.layers if layer.layer.narrow)
    return macs_T, acs_TI, sum(narrow, np.zeros(shape, np.int64))


def priced(macs: Any, acs: Any, profile: Profile, narrow: Any = 0) -> Any:
    """Price operations, numbers, arrays or tensors: macs x mac_pj + acs x ac_pj, in pJ.

    `narrow`: as many of the accumulates cost `ac16_pj`, where the profile has it.
    """
    saved = profile.accumulate_pj(narrow=True) - profile.ac_pj
    return macs * profile.mac_pj + acs * profile.ac_pj + narrow * saved


def energy_up_to(counts: Counts, profile: Profile) -> FloatArray:
    """Energy of each image up to and with each step, pJ [T, I]: what stopping there costs."""
    # Operations are added up, and priced after: integers add exactly, energies would round.
    macs_T, acs_TI, narrow_TI = (of_T.cumsum(axis=0) for of_T in operations(counts))
    energy_TI: FloatArray = priced(macs_T[:, None], acs_TI, profile, narrow_TI)
    return energy_TI


def mean_energy(counts: Counts, profile: Profile) -> float:
    """Energy of the whole network over all steps, pJ, mean per image: the headline."""
    macs, acs, narrow = (int(of_T.sum()) for of_T in operations(counts))
    energy: float = priced(macs, acs / counts.images, profile, narrow / counts.images)
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
    """Return the papers' firing rate x FLOP of each step, [T], mean per image.

    The rate is that of the layer's inputs, the FLOP are `macs_formula`, padding included. 0 where
    real values drive the layer: its formula energy is `macs_formula` x mac_pj.
    """
    if not layer.layer.accumulates:
        return np.zeros(len(layer.executed_T))
    rate_T: FloatArray = layer.nonzero_TI.mean(axis=1) / layer.layer.neurons_in
    return rate_T * layer.layer.macs_formula


MEMORY_PJ_PER_BYTE = 24.96
MEMORY_SOURCE = (
    "3.12 pJ per bit, as in spikingjelly 2, op_counter.SimpleEnergyCostConfig, after "
    "https://openreview.net/pdf?id=SzwU2XrXIS"
)


def memory_traffic(counts: Counts) -> dict[str, float]:
    """Bytes per image over all steps by purpose, and `energy_pj` of all of them together.

    As spikingjelly 2 accounts for them (`op_counter.NeuromorphicMemoryAccessCounter`): a weight is
    read for every operation, without those on padding, a bias for every output, and the membrane
    potential is read and written once at every step.
    """
    updates = counts.timesteps * sum(layer.neuron_updates for layer in counts.layers)
    state = float(updates * 4)  # a potential is one float32
    weights: float = 0
    biases = 0
    for layer in counts.layers:
        # A sum of two spikes reads its weight once: events, not value.
        events = int(layer.events_TI.sum()) / layer.events_TI.shape[1]
        weights += (int(layer.step_macs.sum()) + events) * layer.layer.weight_bytes
        biases += layer.executions * layer.layer.outputs * layer.layer.bias_bytes
    traffic = {
        "weight_read_bytes": weights,
        "bias_read_bytes": float(biases),
        "neuron_state_read_bytes": state,
        "neuron_state_write_bytes": state,
    }
    return {**traffic, "energy_pj": sum(traffic.values()) * MEMORY_PJ_PER_BYTE}


SAME, FRAMES, SKIPPING, MEMORY, INT8 = "same", "frames", "skipping", "memory", "int8"


def against_ann(counts: Counts, profile: Profile, skipped: float | None) -> dict[str, Any]:
    """Return energies of an image, pJ, of the SNN and of the ANN of the same shape, by assumption.

    `same`: both priced by `profile`; of frames the ANN sees the mean, in one pass, and with
    `frames` each of them, in T passes. `skipping`: the ANN leaves out the share `skipped` of its
    multiply-accumulates, those on zeros, where that is known. `memory`: with the traffic of weights
    and potentials. `int8`: the ANN in 8-bit integers, the SNN as it is. `steps_pj`: what stopping
    after each step costs.
    """
    snn, ann = mean_energy(counts, profile), ann_macs(counts) * profile.mac_pj
    found = {SAME: {"snn_pj": snn, "ann_pj": ann}}
    if counts.frames:
        found[FRAMES] = {"snn_pj": snn, "ann_pj": ann * counts.timesteps}
    if skipped is not None:
        found[SKIPPING] = {"snn_pj": snn, "ann_pj": ann * (1.0 - skipped), "skipped": skipped}
    # Others price memory with the operation, or have no figure for integers: a sum of two sources
    # would compare chips, not networks.
    if profile.source == HOROWITZ:
        moved = [memory_traffic(of)["energy_pj"] for of in (counts, as_ann(counts))]
        found[MEMORY] = {"snn_pj": snn + moved[0], "ann_pj": ann + moved[1]}
        if profile.name != INT8_PROFILE:  # an ANN in integers is then the first assumption
            integers = ann_macs(counts) * PROFILES[INT8_PROFILE].mac_pj
            found[INT8] = {"snn_pj": snn, "ann_pj": integers}
    steps_T = energy_up_to(counts, profile).mean(axis=1)
    return {"assumptions": found, "steps_pj": [float(energy) for energy in steps_T]}


def as_ann(counts: Counts) -> Counts:
    """Return the counts of one pass through the ANN of the same shape: every layer once, dense."""
    # One image stands for all: what an ANN of dense layers computes does not depend on it.
    once_T, none_TI = np.ones(1, np.int64), np.zeros((1, 1), np.int64)
    layers = []
    for layer in counts.layers:
        facts, dense_TI = replace(layer.layer, input_kind=REAL), none_TI + layer.layer.neurons_in
        layers.append(LayerCounts(facts, 0, once_T, dense_TI, none_TI, none_TI))
    return Counts(1, 1, tuple(layers))


def skipped_share(counts: Counts) -> float:
    """Return the share of an ANN's multiply-accumulates that meet a zero.

    `counts` are those of the ANN, with details; what has none, as products, skips nothing.
    """
    used = sum(
        layer.layer.macs if layer.effective_TI is None else float(layer.effective_TI.mean())
        for layer in counts.layers
    )
    return 1.0 - used / ann_macs(counts) if used else 0.0
