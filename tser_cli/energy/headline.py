"""What decides: a spiking network beside the ANN of the same shape, under several assumptions.

One favourable figure misleads. An ANN may be computed in 8-bit integers, may skip its zeros as an
SNN does, and both move weights and potentials.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tser_cli.energy.counts import REAL, Counts, LayerCounts
from tser_cli.energy.joules import ann_macs, energy_up_to, mean_energy
from tser_cli.energy.memory import memory_traffic
from tser_cli.energy.profiles import HOROWITZ, INT8_PROFILE, PROFILES, Profile

SAME, SKIPPING, MEMORY, INT8 = "same", "skipping", "memory", "int8"


def against_ann(counts: Counts, profile: Profile, skipped: float | None) -> dict[str, Any]:
    """Return energies of an image, pJ, of the SNN and of the ANN of the same shape, by assumption.

    `same`: both priced by `profile`. `skipping`: the ANN leaves out the share `skipped` of its
    multiply-accumulates, those on zeros, where that is known. `memory`: with the traffic of weights
    and potentials. `int8`: the ANN in 8-bit integers, the SNN as it is. The latter two only for
    profiles of the same source (Horowitz, 45 nm): others price memory with the operation, or have
    no figure for integers. `steps_pj`: what stopping after each step costs.
    """
    snn, ann = mean_energy(counts, profile), ann_macs(counts) * profile.mac_pj
    found = {SAME: _pair(snn, ann)}
    if skipped is not None:
        found[SKIPPING] = {**_pair(snn, ann * (1.0 - skipped)), "skipped": skipped}
    if profile.source == HOROWITZ:
        moved = [memory_traffic(of)["energy_pj"] for of in (counts, as_ann(counts))]
        found[MEMORY] = _pair(snn + moved[0], ann + moved[1])
        if profile.name != INT8_PROFILE:
            found[INT8] = _pair(snn, ann_macs(counts) * PROFILES[INT8_PROFILE].mac_pj)
    steps_T = energy_up_to(counts, profile).mean(axis=1)
    return {"assumptions": found, "steps_pj": [float(energy) for energy in steps_T]}


def _pair(snn_pj: float, ann_pj: float) -> dict[str, float]:
    return {"snn_pj": snn_pj, "ann_pj": ann_pj}


def as_ann(counts: Counts) -> Counts:
    """Return the counts of one pass through the ANN of the same shape: every layer once, dense."""
    return Counts(1, 1, tuple(_dense(layer) for layer in counts.layers))


def _dense(layer: LayerCounts) -> LayerCounts:
    none_TI = np.zeros((1, 1), np.int64)
    return LayerCounts(
        replace(layer.layer, input_kind=REAL),
        neuron_updates=0,
        executed_T=np.ones(1, np.int64),
        nonzero_TI=np.full((1, 1), layer.layer.neurons_in, np.int64),
        events_TI=none_TI,
        value_TI=none_TI,
    )


def skipped_share(counts: Counts) -> float:
    """Return the share of an ANN's multiply-accumulates that meet a zero.

    `counts` are those of the ANN, with details; what has none, as products, skips nothing.
    """
    used = sum(
        layer.layer.macs if layer.effective_TI is None else float(layer.effective_TI.mean())
        for layer in counts.layers
    )
    return 1.0 - used / ann_macs(counts) if used else 0.0
