"""Conventions against the code of those who made them, and against hand counts."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter
from torch import Tensor, nn

from tests.energy import foreign
from tests.energy.foreign import detailed_counter
from tser_cli.energy.any_network.layouts import present
from tser_cli.energy.any_network.network_counter import count_operations
from tser_cli.energy.conventions.conventions import compare, matching
from tser_cli.energy.counts import Counts
from tser_cli.energy.prices import load_profile

PROFILE = load_profile("horowitz-45nm-fp32")


def counts_of(net: Any, images: Tensor, timesteps: int) -> Counts:
    return detailed_counter(net, images, timesteps).counts()


def figures(counts: Counts) -> dict[str, tuple[float, float]]:
    return {one.convention: (one.macs, one.acs) for one in compare(counts, PROFILE)}


def reasons(counts: Counts) -> dict[str, tuple[str, ...]]:
    return {one.convention: one.differs_by for one in compare(counts, PROFILE)}


@pytest.mark.parametrize("kind", ["plain", "sew", "1d", "transposed", "qk first", "kv first"])
def test_spikingjelly_is_what_its_counters_say(kind: str) -> None:
    torch.manual_seed(3)
    makers = {
        "plain": (foreign.Plain, foreign.MAPS),
        "sew": (foreign.Sew, foreign.MAPS),
        "1d": (foreign.OneDimensional, foreign.SERIES),
        "transposed": (foreign.Transposed, foreign.MAPS),
        "qk first": (lambda: foreign.Attention("qk first"), foreign.TOKENS),
        "kv first": (lambda: foreign.Attention("kv first"), foreign.TOKENS),
    }
    make, shape = makers[kind]
    net, images = make().eval(), torch.rand(3, *shape) * 2
    mine = figures(counts_of(net, images, 4))["spikingjelly"]
    functional.reset_net(net)
    synops, macs = SynOpCounter(), MACCounter()
    with torch.no_grad(), DispatchCounterMode([synops, macs]):
        present(net.layout, images, 4, net).call(net)
    assert mine == pytest.approx((macs.get_total() / 3, synops.get_total() / 3), rel=1e-12)


def test_spikingjelly_counts_nothing_under_inference_mode_and_this_does() -> None:
    torch.manual_seed(3)
    net, images = foreign.Plain().eval(), torch.rand(2, *foreign.MAPS) * 2
    expected = figures(counts_of(net, images, 4))
    functional.reset_net(net)
    synops = SynOpCounter()
    shown = present(net.layout, images, 4, net)
    with torch.inference_mode(), DispatchCounterMode([synops]):
        shown.call(net)
    assert synops.get_total() == 0
    with torch.inference_mode(), count_operations(net, detailed=True) as counter:
        shown.call(net)
    assert figures(counter.counts()) == expected


@pytest.mark.skipif(importlib.util.find_spec("neurobench") is None, reason="needs neurobench")
@pytest.mark.parametrize("zeros", [False, True])
def test_neurobench_is_what_its_metric_says(zeros: bool) -> None:
    from neurobench.metrics.utils.layers import single_layer_MACs

    torch.manual_seed(3)
    net, images = foreign.Strided(4).eval(), torch.rand(3, *foreign.MAPS) * 2
    if zeros:
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(torch.rand_like(weight) > 0.3)
    counts = counts_of(net, images, 4)
    macs = acs = 0
    for name, calls in net.noted.items():
        for (x,) in calls:
            operations, spiking = single_layer_MACs(x, net.get_submodule(name))
            acs, macs = acs + operations * spiking, macs + operations * (not spiking)
    assert figures(counts)["neurobench"] == pytest.approx((macs / 3, acs / 3))
    assert ("zero weights left out" in reasons(counts)["neurobench"]) == zeros


class Hand(nn.Module):
    """A 3 x 3 convolution on a 3 x 3 map whose spikes are the input's: worked by hand below."""

    layout = "time-first"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.act, self.scale = neuron.IFNode(step_mode="m"), scale
        self.conv = layer.Conv2d(1, 2, 3, padding=1, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.act(x) * self.scale)
        return y


def test_the_page_s_example_by_hand() -> None:
    # A spike in a corner meets 4 taps, in the centre 9; two output channels.
    images = torch.zeros(1, 1, 3, 3)
    images[0, 0, 0, 0] = images[0, 0, 1, 1] = 1.0
    counts = counts_of(Hand().eval(), images, 1)
    (counted,) = counts.layers
    assert (counted.layer.macs, counted.layer.macs_formula) == (2 * 49, 2 * 81)
    found = figures(counts)
    assert found["exact"] == found["spikingjelly"] == found["neurobench"] == (0, 2 * (4 + 9))
    assert found["formula"] == (0, pytest.approx(2 / 9 * 2 * 81))
    # 9 outputs x 2 channels of biases, and the neurons: 9 inputs at a rate of 2 / 9.
    assert found["syops"] == (0, pytest.approx(2 / 9 * (2 * 81 + 18)))
    assert reasons(counts)["formula"] == ("padding counted",)


@pytest.mark.parametrize("scale", [1.5, 2.0])
def test_other_tools_bill_scaled_spikes_dense(scale: float) -> None:
    images = torch.zeros(1, 1, 3, 3)
    images[0, 0, 0, 0] = images[0, 0, 1, 1] = 1.0
    counts = counts_of(Hand(scale).eval(), images, 1)
    found = figures(counts)
    assert found["exact"] == (0, 26)
    assert found["formula"] == (0, pytest.approx(36))
    # As if real: all outputs x taps; the operations of non-zero inputs; with biases.
    assert found["spikingjelly"] == (162, 0)
    assert found["neurobench"] == (26, 0)
    assert found["syops"] == (180, pytest.approx(0))
    for tool in ("spikingjelly", "neurobench", "syops"):
        assert "scaled spikes not folded into weights" in reasons(counts)[tool]


def test_attention_by_hand() -> None:
    torch.manual_seed(3)
    net = foreign.Attention("qk first").eval()
    counts = counts_of(net, torch.rand(1, *foreign.TOKENS) * 2, 2)
    by_name = {counted.layer.name: counted for counted in counts.layers}
    first, second = by_name["(network)"], by_name["(network)#2"]
    steps, heads, tokens, width = 2, 2, 7, 4
    q, k, v = (
        operand.nonzero_TI.sum() / (steps * heads * tokens * width)
        for operand in (*first.operands, second.operands[1])
    )
    others = sum(c.value_TI.sum() for n, c in by_name.items() if n in "qkv" or n == "proj")
    found = figures(counts)
    base = steps * heads * tokens * width**2
    bias = sum(
        by_name[n].nonzero_TI.sum() / by_name[n].layer.neurons_in * by_name[n].layer.outputs
        for n in ("q", "k", "v", "proj")
    )
    expected = others + bias + base * (min(k, v) + q)
    assert found["spikingformer-2"][1] == pytest.approx(expected)
    assert found["spike-driven-transformer"][1] == pytest.approx(
        others + steps * (q + k) * tokens * heads * width
    )
    # Non-zeros of the right factor x rows of the left one: 7 rows each.
    right = first.operands[1].nonzero_TI.sum() + second.operands[1].nonzero_TI.sum()
    assert found["spikingresformer"][1] == pytest.approx(others + right * tokens)
    assert found["spikformer"][0] == 5 * 8 * tokens


def test_sums_billed_dense_are_told_and_a_figure_is_matched_to_its_convention() -> None:
    torch.manual_seed(3)
    counts = counts_of(foreign.Sew().eval(), torch.rand(3, *foreign.MAPS) * 2, 4)
    assert "sums of spikes billed dense" in reasons(counts)["spikingjelly"]
    assert "sums of spikes counted once" in reasons(counts)["formula"]
    compared = compare(counts, PROFILE)
    formula = next(one for one in compared if one.convention == "formula")
    assert matching(compared, formula.energy_pj * 1.04)[0].convention == "formula"
    assert not matching(compared, formula.energy_pj * 50)
