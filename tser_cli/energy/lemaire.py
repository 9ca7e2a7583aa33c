"""The energy model of Lemaire et al. 2022: arithmetic, memory and addressing, layer by layer.

Lemaire, Cordone, Castagnetti, Novac, Courtois and Miramond, An Analytical Estimation of Spiking
Neural Networks Energy Efficiency, ICONIP 2022, arXiv 2210.13107: 32-bit integers in 45 nm, each
kind of data in an SRAM of its own, spikes in queues of 1,000 entries. Read as spikingjelly 2 does
(`op_counter.analytical_energy`), whose figures these are: an access costs what the size of its
memory makes it cost, an image and a step at a time. Spikes drive a layer where a call meets 0 and 1
alone; other layers are dense, sums of spikes too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from tser_cli.energy.counts import MATMUL, SPIKES, Counts, LayerCounts, NeuronCounts

NAME = "lemaire-2022"
ADD_PJ, MULTIPLY_PJ = 0.1, 3.1
WORD_BYTES = 4
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
        return LemaireEnergy(
            self.arithmetic_pj + other.arithmetic_pj,
            self.addressing_pj + other.addressing_pj,
            self.activations_pj + other.activations_pj,
            self.parameters_pj + other.parameters_pj,
            self.potentials_pj + other.potentials_pj,
            self.omitted + other.omitted,
        )


def word_pj(memory_bytes: float) -> float:
    """Return what reading or writing a 32-bit word of a memory of that size costs."""
    return float(np.interp(memory_bytes, SRAM_BYTES, SRAM_PJ_PER_WORD))


def snn_energy(counts: Counts) -> LemaireEnergy:
    """Energy of one image over all time steps, from counts with the details of calls."""
    has_neurons = bool(counts.neurons)
    total = LemaireEnergy()
    for layer in counts.layers:
        if layer.layer.type == MATMUL or _transposed(layer):
            total += LemaireEnergy(omitted=(layer.layer.name,))
            continue
        total += spiking_layer(layer)
        total += dense_layer(layer, _dense_executions(layer), writes=not has_neurons)
    for neurons in counts.neurons:
        total += neuron_energy(neurons, counts.timesteps)
    return total


def ann_energy(counts: Counts) -> LemaireEnergy:
    """Energy of one pass through the ANN of the same shape: every layer once, dense."""
    total = LemaireEnergy()
    for layer in counts.layers:
        if layer.layer.type == MATMUL or _transposed(layer):
            total += LemaireEnergy(omitted=(layer.layer.name,))
        else:
            total += dense_layer(layer, 1, writes=True)
    return total


def spiking_layer(layer: LayerCounts) -> LemaireEnergy:
    """Return what the spikes of a layer cost: nothing where it is real."""
    facts, spikes = layer.layer, _spikes(layer)
    if layer.binary_TI is None or not facts.accumulates:
        return LemaireEnergy()
    binary = float(layer.binary_TI.sum(axis=0).mean())
    reached, weights = _reach(layer)
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
    """Return what a layer costs that is computed so often with real inputs; `writes`: its outputs
    too.
    """
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
    spikes = float(neurons.spikes_TI.sum(axis=0).mean())
    leaks = 0 if neurons.type.startswith("IF") else updates
    return LemaireEnergy(
        arithmetic_pj=spikes * ADD_PJ + leaks * (MULTIPLY_PJ + ADD_PJ),
        activations_pj=spikes * word_pj(QUEUE_BYTES),
        potentials_pj=2 * updates * word_pj(neurons.updates * WORD_BYTES),
    )


def _reach(layer: LayerCounts) -> tuple[int, int]:
    """Outputs that a spike reaches, and weights that it reads, as the model has them."""
    shape = layer.layer.conv
    if shape is None:
        outputs = layer.layer.macs // layer.layer.neurons_in
        return outputs, outputs
    channels = shape.out_channels // shape.groups
    steps = [ceil(k / s) for k, s in zip(shape.kernel, shape.stride, strict=True)]
    return channels * prod(steps), channels * prod(shape.kernel)


def _spikes(layer: LayerCounts) -> float:
    if layer.binary_TI is None:
        return 0.0
    return float((layer.nonzero_TI * layer.binary_TI).sum(axis=0).mean())


def _dense_executions(layer: LayerCounts) -> float:
    executed = float(layer.executed_T.sum())
    if layer.layer.input_kind == SPIKES or layer.binary_TI is None:
        return 0.0 if layer.layer.accumulates else executed
    if not layer.layer.accumulates:
        return executed
    return executed - float(layer.binary_TI.sum(axis=0).mean())


def _transposed(layer: LayerCounts) -> bool:
    return layer.layer.conv is not None and layer.layer.conv.transposed


def layers_covered(counts: Counts) -> Iterator[LayerCounts]:
    """Yield the layers that the model has formulas for."""
    for layer in counts.layers:
        if layer.layer.type != MATMUL and not _transposed(layer):
            yield layer
