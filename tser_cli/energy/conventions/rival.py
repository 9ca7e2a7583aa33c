"""The energy model of Lemaire et al. 2022: arithmetic, memory and addressing, layer by layer.

Lemaire, Cordone, Castagnetti, Novac, Courtois and Miramond, An Analytical Estimation of Spiking
Neural Networks Energy Efficiency, ICONIP 2022, arXiv 2210.13107: 32-bit integers in 45 nm, each
kind of data in an SRAM of its own, spikes in queues of 1,000 entries. Read as spikingjelly 2 does
(`op_counter.analytical_energy`), whose figures these are: an access costs what the size of its
memory makes it cost, an image and a step at a time. Spikes drive a layer where a call meets 0 and 1
alone; other layers are dense, sums of spikes too.

The fair rival of an SNN: the ANN whose activations have ceil(log2(T + 1)) bits.

Yan, Bai, Tang and Wong, arXiv 2409.08290 (v4, 2026): T binary steps tell T + 1 levels apart, as
many as ceil(log2(T + 1)) bits do. Two comparisons: arithmetic alone, where the SNN wins while
T x rate < E_MAC / E_AC, and with memory, on the model of Lemaire et al. above. With data
movement on a typical neuromorphic chip the authors find that the SNN wins below a spike rate of
5.7 % at T = 5.

A multiplier's energy is taken to grow with the product of its factors' widths, as Horowitz' figures
do (0.2 pJ at 8 x 8 bits, 3.1 pJ at 32 x 32); weights are as wide for both. Activations of b bits
are read and written b / 32 words at a time. The layers that real values drive in the SNN, the stem,
are the same in both, once an image in the rival.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from math import ceil, log2, prod

import numpy as np

from tser_cli.energy.counts import MATMUL, SPIKES, Counts, LayerCounts, NeuronCounts, mean_of
from tser_cli.energy.prices import Profile

ADD_PJ, MULTIPLY_PJ = 0.1, 3.1
WORD_BYTES, WORD_BITS = 4, 32
QUEUE_BYTES = 1000 * WORD_BYTES
SRAM_BYTES = (0.0, 8 * 1024.0, 32 * 1024.0, 1024 * 1024.0)
SRAM_PJ_PER_WORD = (0.0, 10.0, 20.0, 100.0)
"""Energy of one access to an SRAM of so many bytes; linear between, the largest beyond."""


@dataclass(frozen=True)
class LemaireEnergy:
    """Energy of one image in pJ by purpose; `omitted`: layers that the model has no formula for."""

    arithmetic_pj: float = 0.0
    addressing_pj: float = 0.0
    activations_pj: float = 0.0
    parameters_pj: float = 0.0
    potentials_pj: float = 0.0
    omitted: tuple[str, ...] = ()

    @property
    def memory_pj(self) -> float:
        """Inputs and outputs, weights, and membrane potentials."""
        return self.activations_pj + self.parameters_pj + self.potentials_pj

    @property
    def total_pj(self) -> float:
        """Everything together."""
        return self.arithmetic_pj + self.addressing_pj + self.memory_pj

    def __add__(self, other: LemaireEnergy) -> LemaireEnergy:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return LemaireEnergy(*(mine + theirs for mine, theirs in pairs))


def word_pj(memory_bytes: float) -> float:
    """Return what reading or writing a 32-bit word of a memory of that size costs."""
    return float(np.interp(memory_bytes, SRAM_BYTES, SRAM_PJ_PER_WORD))


def has_formula(layer: LayerCounts) -> bool:
    """Return whether the model says what a layer costs: no product, nothing transposed."""
    conv = layer.layer.conv
    return layer.layer.type != MATMUL and not (conv is not None and conv.transposed)


def snn_energy(counts: Counts) -> LemaireEnergy:
    """Energy of one image over all time steps, from counts with the details of calls."""

    def costs(layer: LayerCounts) -> tuple[LemaireEnergy, ...]:
        # What a layer met beside 0 and 1 is dense, as are all calls of a layer of real values.
        dense, kind = float(layer.executions), layer.layer.input_kind
        if kind == SPIKES or (layer.layer.accumulates and layer.binary_TI is None):
            dense = 0.0
        elif layer.layer.accumulates and layer.binary_TI is not None:
            dense -= mean_of(layer.binary_TI)
        # Where neurons follow, their spikes are what is written.
        return spiking_layer(layer), dense_layer(layer, dense, writes=not counts.neurons)

    energies = [neuron_energy(neurons, counts.timesteps) for neurons in counts.neurons]
    return sum(energies, _of_layers(counts, costs))


def ann_energy(counts: Counts) -> LemaireEnergy:
    """Energy of one pass through the ANN of the same shape: every layer once, dense."""
    return _of_layers(counts, lambda layer: (dense_layer(layer, 1, writes=True),))


def _of_layers(
    counts: Counts, costs: Callable[[LayerCounts], tuple[LemaireEnergy, ...]]
) -> LemaireEnergy:
    """Return what the layers cost together; those without a formula are named, not priced."""
    total = LemaireEnergy()
    for layer in counts.layers:
        omitted = LemaireEnergy(omitted=(layer.layer.name,))
        total = sum(costs(layer) if has_formula(layer) else (omitted,), total)
    return total


def spiking_layer(layer: LayerCounts) -> LemaireEnergy:
    """Return what the spikes of a layer cost: nothing where it is real."""
    facts, shape = layer.layer, layer.layer.conv
    if layer.binary_TI is None or not facts.accumulates:
        return LemaireEnergy()
    spikes = mean_of(layer.nonzero_TI * layer.binary_TI)
    binary = mean_of(layer.binary_TI)
    # Outputs that a spike reaches, and weights that it reads, as the model has them.
    reached = weights = facts.macs // facts.neurons_in
    if shape is not None:
        channels = shape.out_channels // shape.groups
        steps = [ceil(k / s) for k, s in zip(shape.kernel, shape.stride, strict=True)]
        reached, weights = channels * prod(steps), channels * prod(shape.kernel)
    # Where a spike's outputs begin in memory: two multiplications in a convolution.
    multiplies = 0.0 if facts.conv is None else 2 * spikes
    biases = binary * facts.outputs if facts.bias_bytes else 0.0
    return LemaireEnergy(
        arithmetic_pj=(spikes * reached + biases) * ADD_PJ,
        addressing_pj=spikes * weights * ADD_PJ + multiplies * (MULTIPLY_PJ + ADD_PJ),
        activations_pj=spikes * word_pj(QUEUE_BYTES),
        parameters_pj=(spikes * weights + biases) * word_pj(facts.parameters * WORD_BYTES),
        potentials_pj=2 * spikes * weights * word_pj(facts.outputs * WORD_BYTES),
    )


def dense_layer(layer: LayerCounts, executions: float, writes: bool) -> LemaireEnergy:
    """Return the cost of a layer computed so often on real inputs; `writes`: its outputs too."""
    facts = layer.layer
    uses = executions * facts.macs_formula
    biases = executions * facts.outputs if facts.bias_bytes else 0.0
    inputs, outputs = executions * facts.neurons_in, executions * facts.outputs
    kernels = 0.0
    if facts.conv is not None:
        kernels = executions * facts.conv.out_channels * prod(facts.conv.kernel)
    # A convolution reads an input for every use of it, a linear layer once.
    reads = uses if facts.conv is not None else inputs
    written = outputs * word_pj(facts.outputs * WORD_BYTES) if writes else 0.0
    return LemaireEnergy(
        arithmetic_pj=uses * (MULTIPLY_PJ + ADD_PJ) + biases * ADD_PJ,
        addressing_pj=(inputs + outputs + kernels) * ADD_PJ,
        activations_pj=reads * word_pj(facts.neurons_in * WORD_BYTES) + written,
        parameters_pj=(uses + biases) * word_pj(facts.parameters * WORD_BYTES),
    )


def neuron_energy(neurons: NeuronCounts, timesteps: int) -> LemaireEnergy:
    """Reading and writing every potential at every step, leaking it, and sending the spikes."""
    assert neurons.spikes_TI is not None, "counted with the details of neurons"
    updates = neurons.updates * timesteps
    spikes = mean_of(neurons.spikes_TI)
    # An IF neuron does not leak.
    leaks = 0 if neurons.type.startswith("IF") else updates
    return LemaireEnergy(
        arithmetic_pj=spikes * ADD_PJ + leaks * (MULTIPLY_PJ + ADD_PJ),
        activations_pj=spikes * word_pj(QUEUE_BYTES),
        potentials_pj=2 * updates * word_pj(neurons.updates * WORD_BYTES),
    )


@dataclass(frozen=True)
class RivalDuel:
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
    arithmetic: RivalDuel
    with_memory: RivalDuel


def bits_for(timesteps: int) -> int:
    """Return the bits that tell as many levels apart as T binary time steps: ceil(log2(T + 1))."""
    return ceil(log2(timesteps + 1))


def fair_rival(counts: Counts, profile: Profile) -> Rival:
    """Return the rival of a network that was counted with details."""
    bits, rate = bits_for(counts.timesteps), operation_rate(counts)
    arithmetic, memory = _arithmetic(counts, profile, bits, rate), _with_memory(counts, bits, rate)
    return Rival(counts.timesteps, bits, rate, arithmetic, memory)


def fed_by_neurons(counts: Counts, layer: LayerCounts) -> bool:
    """Return whether a layer reads spikes, and not the counts of events that the first may read."""
    return layer.layer.accumulates and not (counts.frames and layer is counts.layers[0])


def operation_rate(counts: Counts) -> float:
    """Accumulates over those of an SNN whose every input spikes at every step, 0 without spikes."""
    driven = [layer for layer in counts.layers if fed_by_neurons(counts, layer)]
    possible = sum(layer.layer.macs * layer.executions for layer in driven)
    return sum(mean_of(layer.value_TI) for layer in driven) / possible if possible else 0.0


def _arithmetic(counts: Counts, profile: Profile, bits: int, rate: float) -> RivalDuel:
    fixed = sum(int(layer.step_macs.sum()) for layer in counts.layers) * profile.mac_pj
    accumulates = rival = 0.0
    for layer in counts.layers:
        spent = mean_of(layer.value_TI) * profile.accumulate_pj(layer.layer.narrow)
        # The stem's inputs are as they are; other activations have `bits`.
        width = 8 * (layer.layer.weight_bytes or 4)
        fed = fed_by_neurons(counts, layer)
        multiply = (profile.mac_pj - profile.ac_pj) * min(bits / width, 1.0)
        price = profile.ac_pj + multiply if fed else profile.mac_pj
        rival += layer.layer.macs * price
        # counts of events are what they are, however often the neurons spike
        accumulates, fixed = accumulates + spent * fed, fixed + spent * (not fed)
    return RivalDuel(fixed + accumulates, rival, _break_even(fixed, accumulates, rival, rate))


def _with_memory(counts: Counts, bits: int, rate: float) -> RivalDuel:
    snn, rival = snn_energy(counts), LemaireEnergy()
    spikes = LemaireEnergy()  # the part that grows with them
    for layer in filter(has_formula, counts.layers):
        dense = dense_layer(layer, 1, writes=True)
        if fed_by_neurons(counts, layer):
            spikes += spiking_layer(layer)
            saved = layer.layer.macs_formula * MULTIPLY_PJ * (1 - bits / WORD_BITS)
            dense = replace(
                dense,
                arithmetic_pj=dense.arithmetic_pj - saved,
                activations_pj=dense.activations_pj * (bits / WORD_BITS),
            )
        rival += dense
    for neurons in counts.neurons:
        assert neurons.spikes_TI is not None, "counted with the details of neurons"
        resting = replace(neurons, spikes_TI=np.zeros_like(neurons.spikes_TI))
        moving = neuron_energy(neurons, counts.timesteps)
        still = neuron_energy(resting, counts.timesteps)
        spikes += LemaireEnergy(
            arithmetic_pj=moving.arithmetic_pj - still.arithmetic_pj,
            activations_pj=moving.activations_pj - still.activations_pj,
        )
    fixed = snn.total_pj - spikes.total_pj
    even = _break_even(fixed, spikes.total_pj, rival.total_pj, rate)
    return RivalDuel(snn.total_pj, rival.total_pj, even)


def _break_even(fixed: float, moving: float, rival: float, rate: float) -> float | None:
    """Return the rate at which fixed + moving, which grows with it, costs what the rival does."""
    # A rival cheaper than the part without spikes is beaten at no rate.
    if moving <= 0 or rival <= fixed:
        return None
    return rate * (rival - fixed) / moving
