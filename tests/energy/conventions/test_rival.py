"""Lemaire et al.'s energy model: against spikingjelly's profiler, and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.op_counter import LemaireEnergyConfig, LemaireEnergyProfiler
from torch import nn

from tests.energy import foreign
from tser_cli.base.errors import ConfigError
from tser_cli.energy.conventions import rival
from tser_cli.energy.conventions.rival import bits_for, fair_rival, operation_rate
from tser_cli.energy.counts import Counts, mean_of
from tser_cli.energy.prices import check_precision, load_profile

PROFILE = load_profile("horowitz-45nm-fp32")


def network(last: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        neuron.IFNode(v_threshold=0.3),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False),
        neuron.LIFNode(v_threshold=0.1),
        last,
    ).eval()


def counts_of(net: nn.Module, x: torch.Tensor, timesteps: int) -> Counts:
    return foreign.detailed_counter(net, x, timesteps, "stepwise").counts()


@pytest.mark.parametrize("last", ["linear", "conv", "real"])
@pytest.mark.filterwarnings("ignore:Lemaire formulas do not support:RuntimeWarning")
def test_it_is_what_spikingjelly_s_profiler_says(last: str) -> None:
    layers = {
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(72, 10)),
        "conv": nn.Sequential(nn.Conv2d(8, 4, 2), neuron.LIFNode(v_threshold=0.1)),
        "real": nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8, 10)),
    }
    net, x = network(layers[last]), torch.rand(1, 3, 8, 8)
    mine = rival.snn_energy(counts_of(net, x, 4))
    functional.reset_net(net)
    # Not strict: it would refuse nn.Flatten, which costs nothing.
    profiler = LemaireEnergyProfiler(config=LemaireEnergyConfig(strict=False))
    profiler.bind_model(net)
    with profiler, torch.no_grad():
        for _ in range(4):
            net(x)
    theirs: Any = profiler.get_report()
    assert mine.total_pj == pytest.approx(theirs.total_pj, rel=1e-6)
    assert mine.arithmetic_pj == pytest.approx(theirs.breakdown_pj["ops_pj"], rel=1e-6)
    assert mine.addressing_pj == pytest.approx(theirs.breakdown_pj["addressing_pj"], rel=1e-6)
    assert mine.potentials_pj == pytest.approx(theirs.breakdown_pj["potential_pj"], rel=1e-6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 0), (4096, 5), (8192, 10), (32768, 20), (20480, 15), (2**20, 100), (2**24, 100)],
)
def test_an_access_costs_what_its_memory_s_size_makes_it(size: int, expected: float) -> None:
    assert rival.word_pj(size) == pytest.approx(expected)


def test_two_layers_by_hand() -> None:
    # 3 inputs of 1, 0, 1 -> Linear(3, 2) without bias -> IF of threshold 1 -> Linear(2, 4).
    net = nn.Sequential(nn.Linear(3, 2, bias=False), neuron.IFNode(), nn.Linear(2, 4)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))
    found = rival.snn_energy(counts_of(net, torch.tensor([[1.0, 0.0, 1.0]]), 1))
    word = rival.word_pj
    # The first layer meets spikes: 2 of them reach 2 outputs; one of the neurons fires, and reaches
    # 4 outputs that have a bias each.
    assert found.arithmetic_pj == pytest.approx((2 * 2 + 1 + 1 * 4 + 4) * 0.1)
    assert found.addressing_pj == pytest.approx((2 * 2 + 1 * 4) * 0.1)
    assert found.activations_pj == pytest.approx((2 + 1 + 1) * word(4000))
    assert found.parameters_pj == pytest.approx(4 * word(6 * 4) + (4 + 4) * word(12 * 4))
    potentials = 2 * 4 * word(2 * 4) + 2 * 4 * word(4 * 4) + 2 * 2 * word(2 * 4)
    assert found.potentials_pj == pytest.approx(potentials)
    assert found.total_pj == pytest.approx(
        found.arithmetic_pj + found.addressing_pj + found.memory_pj
    )


def test_what_the_model_has_no_formula_for_is_named() -> None:
    torch.manual_seed(3)
    net = foreign.Attention("qk first").eval()
    counts = foreign.detailed_counter(net, torch.rand(2, *foreign.TOKENS), 2).counts()
    assert (
        rival.ann_energy(counts).omitted
        == rival.snn_energy(counts).omitted
        == ("(network)", "(network)#2")
    )


@pytest.mark.parametrize(("timesteps", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4)])
def test_the_rival_s_bits(timesteps: int, bits: int) -> None:
    assert bits_for(timesteps) == bits


def test_the_break_even_rate_is_where_both_cost_the_same() -> None:
    net, x = network(nn.Sequential(nn.Flatten(), nn.Linear(72, 10))), torch.rand(1, 3, 8, 8) * 0.3
    counts = counts_of(net, x, 2)
    rival = fair_rival(counts, PROFILE)
    spiking = [layer for layer in counts.layers if layer.layer.accumulates]
    macs, stem = sum(layer.layer.macs for layer in spiking), counts.layers[0].layer.macs
    assert rival.bits == 2
    assert rival.spike_rate == operation_rate(counts)
    multiply = 0.9 + 3.7 * 2 / 32
    assert rival.arithmetic.rival_pj == pytest.approx(stem * 4.6 + macs * multiply)
    assert rival.arithmetic.snn_pj == pytest.approx(
        2 * stem * 4.6 + rival.spike_rate * 2 * macs * 0.9
    )
    # The stem is computed at both steps: its MACs alone cost more than the rival.
    assert rival.arithmetic.break_even is None
    assert rival.arithmetic.winner == "ANN"


def test_arithmetic_alone_breaks_even_at_a_multiplier_s_price() -> None:
    net = nn.Sequential(neuron.IFNode(), nn.Flatten(), nn.Linear(8, 5, bias=False)).eval()
    counts = counts_of(net, torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]]), 3)
    rival = fair_rival(counts, PROFILE)
    assert rival.spike_rate == pytest.approx(1 / 8)
    assert rival.arithmetic.break_even == pytest.approx((0.9 + 3.7 * 2 / 32) / (3 * 0.9))
    assert rival.arithmetic.winner == "SNN"


def test_counts_of_events_do_not_grow_with_the_spikes() -> None:
    net = network(nn.Sequential(nn.Flatten(), nn.Linear(72, 10)))
    counts = replace(counts_of(net, torch.arange(192.0).view(1, 3, 8, 8) % 3, 2), frames=True)
    rival, (stem, *others) = fair_rival(counts, PROFILE), counts.layers
    of_stem, macs = 0.9 * mean_of(stem.value_TI), sum(layer.layer.macs for layer in others)
    assert rival.arithmetic.snn_pj == pytest.approx(of_stem + rival.spike_rate * 2 * macs * 0.9)
    even = (rival.arithmetic.rival_pj - of_stem) / (2 * macs * 0.9)
    assert 0 < rival.spike_rate < 1 and rival.arithmetic.break_even == pytest.approx(even)


def test_int8_prices_are_for_int8_weights() -> None:
    int8 = load_profile("horowitz-45nm-int8")
    with pytest.raises(ConfigError, match=r"32 bits.*--assume-int8"):
        check_precision(int8, 32, assume_int8=False)
    check_precision(int8, 32, assume_int8=True)
    check_precision(int8, 8, assume_int8=False)
    check_precision(PROFILE, 32, assume_int8=False)
