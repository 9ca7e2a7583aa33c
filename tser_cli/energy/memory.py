"""Memory traffic, a total of its own: bytes of weights, biases and neuron state, and their energy.

The accounting and the figure are those of spikingjelly 2 (`op_counter.SimpleEnergyProfiler` and
`NeuromorphicMemoryAccessCounter`): a weight is read for every operation, a bias for every output,
and the membrane potential is read and written once at every step, each at 24.96 pJ a byte. Real
inputs read a weight for each of their multiply-accumulates, without those on padding.
"""

from __future__ import annotations

from tser_cli.energy.counts import Counts, LayerCounts

MEMORY_PJ_PER_BYTE = 24.96
MEMORY_SOURCE = (
    "3.12 pJ per bit, as in spikingjelly 2, op_counter.SimpleEnergyCostConfig, after "
    "https://openreview.net/pdf?id=SzwU2XrXIS"
)
STATE_BYTES = 4
"""One float32 membrane potential a neuron."""


def memory_traffic(counts: Counts, state_bytes: int = STATE_BYTES) -> dict[str, float]:
    """Bytes per image over all steps by purpose, and `energy_pj` of all of them together."""
    updates = counts.timesteps * sum(layer.neuron_updates for layer in counts.layers)
    traffic = {
        "weight_read_bytes": sum(_weight_reads(layer) for layer in counts.layers),
        "bias_read_bytes": float(sum(_bias_reads(layer) for layer in counts.layers)),
        "neuron_state_read_bytes": float(updates * state_bytes),
        "neuron_state_write_bytes": float(updates * state_bytes),
    }
    return {**traffic, "energy_pj": sum(traffic.values()) * MEMORY_PJ_PER_BYTE}


def _weight_reads(layer: LayerCounts) -> float:
    # A sum of two spikes reads its weight once: events, not value.
    images: int = layer.events_TI.shape[1]
    reads = int(layer.step_macs.sum()) + int(layer.events_TI.sum()) / images
    return reads * layer.layer.weight_bytes


def _bias_reads(layer: LayerCounts) -> int:
    return int(layer.executed_T.sum()) * layer.layer.outputs * layer.layer.bias_bytes
