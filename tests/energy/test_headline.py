"""Energies beside the ANN of the same shape: by hand, and against an ANN that was counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tser_cli.energy.any_network.layouts import INSIDE
from tser_cli.energy.any_network.network_counter import count_operations
from tser_cli.energy.counter import counting
from tser_cli.energy.counts import Counts
from tser_cli.energy.joules import (
    against_ann,
    ann_macs,
    as_ann,
    energy_up_to,
    mean_energy,
    memory_traffic,
    skipped_share,
)
from tser_cli.energy.prices import load_profile
from tser_cli.models.base import build_model
from tser_cli.settings.config import NeuronConfig

FP32 = load_profile("horowitz-45nm-fp32")


def count(model: Any, images_NCHW: Tensor, timesteps: int) -> Counts:
    with torch.no_grad(), counting(model, model.input_kinds()) as counter:
        model(images_NCHW, timesteps)
    return counter.counts()


@pytest.fixture
def counts(small_sew: nn.Module, exact_images: Callable[[int], Tensor]) -> Counts:
    """Five images at three steps."""
    return count(small_sew, exact_images(5), 3)


def test_the_same_arithmetic_and_an_ann_that_skips_or_has_integers(counts: Counts) -> None:
    found = against_ann(counts, FP32, skipped=0.25)["assumptions"]
    snn, macs = mean_energy(counts, FP32), ann_macs(counts)
    assert found["same"] == {"snn_pj": snn, "ann_pj": 4.6 * macs}
    assert found["skipping"] == {"snn_pj": snn, "ann_pj": 0.75 * 4.6 * macs, "skipped": 0.25}
    assert found["int8"] == {"snn_pj": snn, "ann_pj": 0.23 * macs}


def test_the_ann_of_the_same_shape_moves_as_much_as_one_that_was_counted() -> None:
    shape = {"channels": 1, "height": 16, "width": 16, "num_classes": 4}
    snn = build_model("resnet20", **shape, neuron=NeuronConfig()).eval()
    ann = build_model("resnet20", **shape).eval()
    images = torch.rand(2, 1, 16, 16)
    spiking, counted = count(snn, images, 3), count(ann, images[:1], 1)
    assert memory_traffic(as_ann(spiking)) == memory_traffic(counted)
    found = against_ann(spiking, FP32, None)["assumptions"]["memory"]
    snn_pj = mean_energy(spiking, FP32) + memory_traffic(spiking)["energy_pj"]
    assert found["snn_pj"] == pytest.approx(snn_pj)
    ann_pj = mean_energy(counted, FP32) + memory_traffic(counted)["energy_pj"]
    assert found["ann_pj"] == pytest.approx(ann_pj)


def test_energy_after_each_step(counts: Counts) -> None:
    steps = against_ann(counts, FP32, None)["steps_pj"]
    assert steps == pytest.approx(energy_up_to(counts, FP32).mean(axis=1))
    assert steps[-1] == pytest.approx(mean_energy(counts, FP32))


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
    found = against_ann(counts, load_profile(profile), None)["assumptions"]
    assert found.keys() == assumptions


@torch.no_grad()
def test_operations_on_zeros_by_hand() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    for layer in (first, second):
        layer.weight.fill_(1.0)
    first.bias.copy_(torch.tensor([0.0, -10.0, 0.0]))  # the second value is always 0
    network = nn.Sequential(first, nn.ReLU(), second)
    with count_operations(network, INSIDE, 1, detailed=True) as counter:
        network(torch.tensor([[0.5, 0.0, 0.0, 0.25], [0.5, 0.5, 0.5, 0.5]]))
    # first layer: 2 and 4 of 4 inputs x 3 outputs; second: 2 of 3 inputs x 2 outputs
    assert skipped_share(counter.counts()) == pytest.approx(1 - (9 + 4) / (12 + 6))
