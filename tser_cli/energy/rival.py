"""The fair rival of an SNN: the ANN whose activations have ceil(log2(T + 1)) bits.

Yan, Bai, Tang and Wong, arXiv 2409.08290 (v4, 2026): T binary steps tell T + 1 levels apart, as
many as ceil(log2(T + 1)) bits do. Two comparisons: arithmetic alone, where the SNN wins while
T x rate < E_MAC / E_AC, and with memory, on the model of `tser_cli.energy.lemaire`. With data
movement on a typical neuromorphic chip the authors find that the SNN wins below a spike rate of
5.7 % at T = 5.

A multiplier's energy is taken to grow with the product of its factors' widths, as Horowitz' figures
do (0.2 pJ at 8 x 8 bits, 3.1 pJ at 32 x 32); weights are as wide for both. Activations of b bits
are read and written b / 32 words at a time. The layers that real values drive in the SNN, the stem,
are the same in both, once an image in the rival.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log2

import numpy as np

from tser_cli.energy import lemaire
from tser_cli.energy.counts import Counts, LayerCounts
from tser_cli.energy.profiles import Profile

YAN_RATE, YAN_STEPS = 0.057, 5
WORD_BITS = 32


@dataclass(frozen=True)
class Duel:
    """One comparison, in pJ an image; `break_even`: the spike rate below which the SNN wins.

    None where no rate would do, or where the SNN has no spike to scale.
    """

    snn_pj: float
    rival_pj: float
    break_even: float | None

    @property
    def winner(self) -> str:
        """SNN or ANN: the one that costs less."""
        return "SNN" if self.snn_pj < self.rival_pj else "ANN"


@dataclass(frozen=True)
class Rival:
    """The ANN of `bits`, and both comparisons; `spike_rate` is weighted by operations."""

    timesteps: int
    bits: int
    spike_rate: float
    arithmetic: Duel
    with_memory: Duel


def bits_for(timesteps: int) -> int:
    """Return the bits that tell as many levels apart as T binary time steps: ceil(log2(T + 1))."""
    return ceil(log2(timesteps + 1))


def fair_rival(counts: Counts, profile: Profile) -> Rival:
    """Return the rival of a network that was counted with details."""
    bits = bits_for(counts.timesteps)
    rate = operation_rate(counts)
    return Rival(
        timesteps=counts.timesteps,
        bits=bits,
        spike_rate=rate,
        arithmetic=_arithmetic(counts, profile, bits, rate),
        with_memory=_with_memory(counts, bits, rate),
    )


def operation_rate(counts: Counts) -> float:
    """Accumulates over those of an SNN whose every input spikes at every step, 0 without spikes."""
    driven = [layer for layer in counts.layers if layer.layer.accumulates]
    possible = sum(layer.layer.macs * int(layer.executed_T.sum()) for layer in driven)
    if not possible:
        return 0.0
    return sum(float(layer.value_TI.sum(axis=0).mean()) for layer in driven) / possible


def _arithmetic(counts: Counts, profile: Profile, bits: int, rate: float) -> Duel:
    accumulates = sum(float(x.value_TI.sum(axis=0).mean()) for x in counts.layers) * profile.ac_pj
    fixed = sum(int(layer.step_macs.sum()) for layer in counts.layers) * profile.mac_pj
    rival = sum(layer.layer.macs * _mac_pj(layer, profile, bits) for layer in counts.layers)
    return Duel(fixed + accumulates, rival, _break_even(fixed, accumulates, rival, rate))


def _mac_pj(layer: LayerCounts, profile: Profile, bits: int) -> float:
    """Return a multiply-accumulate of a b-bit activation; the stem's inputs are as they are."""
    if not layer.layer.accumulates:
        return profile.mac_pj
    width = 8 * (layer.layer.weight_bytes or 4)
    return profile.ac_pj + (profile.mac_pj - profile.ac_pj) * min(bits / width, 1.0)


def _with_memory(counts: Counts, bits: int, rate: float) -> Duel:
    snn = lemaire.snn_energy(counts)
    spikes = _of_spikes(counts)
    rival = lemaire.LemaireEnergy()
    for layer in lemaire.layers_covered(counts):
        dense = lemaire.dense_layer(layer, 1, writes=True)
        rival += _narrowed(dense, layer, bits) if layer.layer.accumulates else dense
    fixed = snn.total_pj - spikes.total_pj
    even = _break_even(fixed, spikes.total_pj, rival.total_pj, rate)
    return Duel(snn.total_pj, rival.total_pj, even)


def _of_spikes(counts: Counts) -> lemaire.LemaireEnergy:
    """Return the part of the SNN's energy that grows with its spikes, with memory."""
    total = lemaire.LemaireEnergy()
    for layer in lemaire.layers_covered(counts):
        total += lemaire.spiking_layer(layer)
    for neurons in counts.neurons:
        assert neurons.spikes_TI is not None, "counted with the details of neurons"
        resting = replace(neurons, spikes_TI=np.zeros_like(neurons.spikes_TI))
        moving = lemaire.neuron_energy(neurons, counts.timesteps)
        still = lemaire.neuron_energy(resting, counts.timesteps)
        total += lemaire.LemaireEnergy(
            arithmetic_pj=moving.arithmetic_pj - still.arithmetic_pj,
            activations_pj=moving.activations_pj - still.activations_pj,
        )
    return total


def _narrowed(dense: lemaire.LemaireEnergy, layer: LayerCounts, bits: int) -> lemaire.LemaireEnergy:
    """Return a dense layer whose activations have `bits` instead of 32."""
    part = bits / WORD_BITS
    multiplications = layer.layer.macs_formula * lemaire.MULTIPLY_PJ
    return replace(
        dense,
        arithmetic_pj=dense.arithmetic_pj - multiplications * (1 - part),
        activations_pj=dense.activations_pj * part,
    )


def _break_even(fixed: float, moving: float, rival: float, rate: float) -> float | None:
    """Return the spike rate at which fixed + moving, which grows with it, costs what the rival
    does.
    """
    if moving <= 0 or rival <= fixed:
        return None
    return rate * (rival - fixed) / moving
