"""Memory traffic, by hand and against spikingjelly's counter."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based.op_counter import (
    ModuleCounterMode,
    NeuromorphicMemoryAccessCounter,
    SimpleEnergyCostConfig,
)
from torch import Tensor, nn

from tser_cli.energy.counter import counting
from tser_cli.energy.joules import MEMORY_PJ_PER_BYTE, memory_traffic
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.settings.config import NeuronConfig


class Binary(nn.Module):
    """Without padding in its real layer, where spikingjelly counts the zeros of the padding."""

    def __init__(self) -> None:
        super().__init__()
        spiking = NeuronConfig(backend="spikingjelly", threshold=0.25)
        self.stem = nn.Conv2d(2, 4, 3)
        self.act1 = SpikingNeuron(spiking)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.act2 = SpikingNeuron(spiking)
        self.fc = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        x = self.act1(self.stem(x).repeat(timesteps, 1, 1, 1), timesteps)
        x = self.act2(self.conv(x), timesteps)
        y: Tensor = self.fc(x.flatten(1))
        return y


@torch.no_grad()
def test_traffic_is_what_spikingjelly_counts() -> None:
    model, images_NCHW = Binary(), torch.randn(3, 2, 8, 8)
    theirs = NeuromorphicMemoryAccessCounter()
    kinds = {"stem": "real", "conv": "spikes", "fc": "spikes"}
    with ModuleCounterMode([theirs], model=model), counting(model, kinds) as counter:
        model(images_NCHW, timesteps=2)
    expected = theirs.get_counts()["Global"]
    traffic = memory_traffic(counter.counts())
    total = sum(expected.values())
    assert all(expected.values()) and len(expected) == 4
    assert {name: 3 * traffic[name] for name in expected} == pytest.approx(dict(expected))
    assert 3 * traffic["energy_pj"] == pytest.approx(total * MEMORY_PJ_PER_BYTE)


def test_the_cost_of_a_byte_is_spikingjelly_s() -> None:
    assert SimpleEnergyCostConfig().e_memory_pj_per_byte == MEMORY_PJ_PER_BYTE


@torch.no_grad()
def test_a_sum_of_spikes_reads_its_weight_once() -> None:
    model = nn.Linear(3, 10, bias=False)
    wrapped = nn.Sequential(model)
    with counting(wrapped, {"0": "sums"}) as counter:
        wrapped(torch.tensor([[2.0, 0.0, 1.0]]))
    assert memory_traffic(counter.counts())["weight_read_bytes"] == 2 * 10 * 4
