"""Energies by hand, beside the ANN of the same shape, and memory traffic as spikingjelly has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import op_counter
from torch import Tensor, nn

from tser_cli.energy import joules
from tser_cli.energy.counter import counting
from tser_cli.energy.counts import Counts, LayerCounts, LayerFacts
from tser_cli.energy.prices import Profile, load_profile
from tser_cli.energy.table import Labels, energy_rows
from tser_cli.models.base import build_model
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.settings.config import NeuronConfig

CHIP = Profile(name="chip", mac_pj=4.0, ac_pj=0.5, source="x", technology="y")
FP32 = load_profile("horowitz-45nm-fp32")


def layer(
    name: str, kind: str, executed: list[int], value: list[list[int]], nonzero: list[list[int]]
) -> LayerCounts:
    facts = LayerFacts(name, "conv", kind, 10, 8, 90, 120, weight_bytes=4, bias_bytes=0)
    zeros = np.zeros((len(executed), len(value[0])), np.int64)
    counted = np.array(value)
    events = np.minimum(counted, 7) if kind == "sums" else counted
    return LayerCounts(
        facts, 16, np.array(executed), np.array(nonzero), events + zeros, counted + zeros
    )


@pytest.fixture
def counts() -> Counts:
    """A stem computed once, a layer of sums and a classifier: three steps, two images."""
    none = [[0, 0]] * 3
    return Counts(
        3,
        2,
        (
            layer("stem", "real", [1, 0, 0], none, [[9, 10], [0, 0], [0, 0]]),
            layer("conv", "sums", [1, 1, 1], [[8, 0], [2, 6], [0, 20]], [[4, 0], [1, 3], [0, 10]]),
            layer("fc", "real", [1, 1, 1], none, [[3, 3]] * 3),
        ),
    )


def test_energy_up_to_each_step(counts: Counts) -> None:
    # 90 MACs of 4 pJ a layer and step, the stem's at the first alone; and accumulates of 0.5 pJ.
    each = [[180 * 4 + 4, 180 * 4], [90 * 4 + 1, 90 * 4 + 3], [90 * 4, 90 * 4 + 10]]
    expected = np.cumsum(each, axis=0)
    assert joules.energy_up_to(counts, CHIP).tolist() == expected.tolist()
    assert joules.mean_energy(counts, CHIP) == expected[-1].mean() == 1449.0


def test_the_ann_of_the_same_shape_and_the_stem_both_ways(counts: Counts) -> None:
    assert joules.ann_macs(counts) == 270
    assert joules.stem_energy(counts, CHIP) == {"once": 360.0, "per_step": 1080.0}


def test_a_stem_of_two_layers_is_reported_whole(counts: Counts) -> None:
    second = layer("stem2", "real", [1, 0, 0], [[0, 0]] * 3, [[1, 1], [0, 0], [0, 0]])
    deeper = Counts(3, 2, (counts.layers[0], second, *counts.layers[1:]))
    assert [found.layer.name for found in deeper.stem] == ["stem", "stem2"]
    assert joules.stem_energy(deeper, CHIP) == {"once": 720.0, "per_step": 2160.0}


def test_the_formula_is_rate_times_flop(counts: Counts) -> None:
    expected = [0.2 * 120, 0.2 * 120, 0.5 * 120]
    assert joules.formula_operations(counts.layers[1]).tolist() == pytest.approx(expected)
    assert joules.formula_operations(counts.layers[0]).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "bits", "fan_in", "narrow"),
    [
        ("spikes", 8, 258, True),  # 258 x 127 = 32,766 is below 2^15, 259 x 127 = 32,893 is not
        ("spikes", 8, 259, False),
        ("signed", 8, 258, True),
        ("spikes", 4, 4681, True),  # x 7 = 32,767
        ("spikes", 4, 4682, False),
        ("spikes", 32, 258, True),  # as if the weights had 8 bits
        ("spikes", 32, 259, False),
        ("sums", 8, 9, False),  # how large a sum gets is not known
        ("real", 8, 9, False),
        ("spikes", 8, 0, False),
    ],
)
def test_which_sums_16_bits_hold(kind: str, bits: int, fan_in: int, narrow: bool) -> None:
    facts = layer("conv", kind, [1], [[8]], [[4]]).layer
    assert replace(facts, fan_in=fan_in, weight_bits=bits).narrow is narrow


def test_each_accumulate_costs_what_its_sum_needs() -> None:
    wide = layer("wide", "spikes", [1, 1], [[10, 0], [20, 40]], [[1, 0], [2, 4]])
    small = replace(wide, layer=replace(wide.layer, name="small", fan_in=144, weight_bits=8))
    stem = layer("stem", "real", [1, 0], [[0, 0]] * 2, [[9, 9], [0, 0]])
    counts, int8 = Counts(2, 2, (stem, wide, small)), load_profile("horowitz-45nm-int8")
    # 90 MACs of 0.3 pJ; 0.1 pJ an accumulate with a sum of 32 bits, 0.05 pJ with one of 16
    each = np.array([[27 + 1 + 0.5, 27], [2 + 1, 4 + 2]])
    assert joules.energy_up_to(counts, int8) == pytest.approx(each.cumsum(axis=0))
    assert joules.mean_energy(counts, int8) == pytest.approx(each.sum() / 2)
    rows = energy_rows(counts, int8, Labels("run", "digits", "", "fp32"))
    assert rows[-1]["energy_pj"] == pytest.approx(each.sum() / 2)
    assert rows[-1]["ann_energy_pj"] == pytest.approx(270 * 0.3)
    assert joules.mean_energy(counts, FP32) == pytest.approx(90 * 4.6 + 2 * 35 * 0.9)


def test_a_network_of_spikes_alone_has_no_stem() -> None:
    only = layer("conv", "spikes", [1, 1], [[5], [6]], [[5], [6]])
    counts = Counts(2, 1, (only,))
    assert counts.stem == ()
    assert joules.stem_energy(counts, CHIP) == {"once": 0.0, "per_step": 0.0}


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
    theirs = op_counter.NeuromorphicMemoryAccessCounter()
    kinds = {"stem": "real", "conv": "spikes", "fc": "spikes"}
    with op_counter.ModuleCounterMode([theirs], model=model), counting(model, kinds) as counter:
        model(images_NCHW, timesteps=2)
    expected = theirs.get_counts()["Global"]
    traffic = joules.memory_traffic(counter.counts())
    total = sum(expected.values())
    assert op_counter.SimpleEnergyCostConfig().e_memory_pj_per_byte == joules.MEMORY_PJ_PER_BYTE
    assert all(expected.values()) and len(expected) == 4
    assert {name: 3 * traffic[name] for name in expected} == pytest.approx(dict(expected))
    assert 3 * traffic["energy_pj"] == pytest.approx(total * joules.MEMORY_PJ_PER_BYTE)


@torch.no_grad()
def test_a_sum_of_spikes_reads_its_weight_once() -> None:
    model = nn.Sequential(nn.Linear(3, 10, bias=False))
    with counting(model, {"0": "sums"}) as counter:
        model(torch.tensor([[2.0, 0.0, 1.0]]))
    assert joules.memory_traffic(counter.counts())["weight_read_bytes"] == 2 * 10 * 4


def count(model: Any, images_NCHW: Tensor, timesteps: int) -> Counts:
    with torch.no_grad(), counting(model, model.input_kinds()) as counter:
        model(images_NCHW, timesteps)
    return counter.counts()


@pytest.fixture
def sew_counts(small_sew: nn.Module, exact_images: Callable[[int], Tensor]) -> Counts:
    """Five images at three steps."""
    return count(small_sew, exact_images(5), 3)


def test_the_same_arithmetic_and_an_ann_that_skips_or_has_integers(sew_counts: Counts) -> None:
    told = joules.against_ann(sew_counts, FP32, skipped=0.25)
    found, steps = told["assumptions"], told["steps_pj"]
    snn, macs = joules.mean_energy(sew_counts, FP32), joules.ann_macs(sew_counts)
    assert found["same"] == {"snn_pj": snn, "ann_pj": 4.6 * macs}
    assert found["skipping"] == {"snn_pj": snn, "ann_pj": 0.75 * 4.6 * macs, "skipped": 0.25}
    assert found["int8"] == {"snn_pj": snn, "ann_pj": 0.3 * macs}
    assert steps == pytest.approx(joules.energy_up_to(sew_counts, FP32).mean(axis=1))
    assert steps[-1] == pytest.approx(snn)


def test_the_ann_of_the_same_shape_moves_as_much_as_one_that_was_counted() -> None:
    shape = {"channels": 1, "height": 16, "width": 16, "num_classes": 4}
    snn = build_model("resnet20", **shape, neuron=NeuronConfig()).eval()
    ann = build_model("resnet20", **shape).eval()
    images = torch.rand(2, 1, 16, 16)
    spiking, counted = count(snn, images, 3), count(ann, images[:1], 1)
    assert joules.memory_traffic(joules.as_ann(spiking)) == joules.memory_traffic(counted)
    found = joules.against_ann(spiking, FP32, None)["assumptions"]["memory"]
    snn_pj = joules.mean_energy(spiking, FP32) + joules.memory_traffic(spiking)["energy_pj"]
    assert found["snn_pj"] == pytest.approx(snn_pj)
    ann_pj = joules.mean_energy(counted, FP32) + joules.memory_traffic(counted)["energy_pj"]
    assert found["ann_pj"] == pytest.approx(ann_pj)


@pytest.mark.parametrize(
    ("profile", "assumptions"),
    [
        ("horowitz-45nm-fp32", {"same", "memory", "int8"}),
        ("horowitz-45nm-int8", {"same", "memory"}),
        ("loihi", {"same"}),
        ("lemaire-2022", {"same"}),
    ],
)
def test_what_can_be_said_depends_on_the_profile(
    counts: Counts, profile: str, assumptions: set[str]
) -> None:
    found = joules.against_ann(counts, load_profile(profile), None)["assumptions"]
    assert found.keys() == assumptions


@torch.no_grad()
def test_operations_on_zeros_by_hand() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    for layer in (first, second):
        layer.weight.fill_(1.0)
    first.bias.copy_(torch.tensor([0.0, -10.0, 0.0]))  # the second value is always 0
    network = nn.Sequential(first, nn.ReLU(), second)
    with counting(network, {"0": "real", "2": "real"}, detailed=True) as counter:
        network(torch.tensor([[0.5, 0.0, 0.0, 0.25], [0.5, 0.5, 0.5, 0.5]]))
    # first layer: 2 and 4 of 4 inputs x 3 outputs; second: 2 of 3 inputs x 2 outputs
    assert joules.skipped_share(counter.counts()) == pytest.approx(1 - (9 + 4) / (12 + 6))


def test_of_frames_both_anns_are_named(counts: Counts) -> None:
    frames = replace(counts, layers=counts.layers[1:], frames=True)
    found = joules.against_ann(frames, CHIP, skipped=None)["assumptions"]
    assert {name: case["ann_pj"] for name, case in found.items()} == {"same": 720, "frames": 2160}
    rows = energy_rows(frames, CHIP, Labels("a-run", "n-mnist", "", "fp32"))
    assert (rows[-1]["ann_macs"], rows[-1]["ann_frames_macs"]) == (180, 540)
    assert (rows[-1]["ann_energy_pj"], rows[-1]["ann_frames_energy_pj"]) == (720, 2160)
    images = energy_rows(counts, CHIP, Labels("a-run", "digits", "", "fp32"))[-1]
    assert images["ann_frames_macs"] is images["ann_frames_energy_pj"] is None
    # a layer of real values is no stem: nothing of frames is the same at each step
    assert replace(counts, frames=True).stem == () != counts.stem
