"""Energies worked out by hand from counts written down by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tser_cli.energy.counts import Counts, LayerCounts, LayerFacts
from tser_cli.energy.joules import (
    ann_macs,
    energy_per_step,
    energy_up_to,
    formula_operations,
    mean_energy,
    stem_energy,
)
from tser_cli.energy.prices import Profile

CHIP = Profile(name="chip", mac_pj=4.0, ac_pj=0.5, source="x", technology="y")


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


def test_energy_of_each_step_and_image(counts: Counts) -> None:
    expected = [[180 * 4 + 4, 180 * 4], [90 * 4 + 1, 90 * 4 + 3], [90 * 4, 90 * 4 + 10]]
    assert energy_per_step(counts, CHIP).tolist() == expected


def test_energy_up_to_each_step(counts: Counts) -> None:
    expected = np.cumsum([[724, 720], [361, 363], [360, 370]], axis=0)
    assert energy_up_to(counts, CHIP).tolist() == expected.tolist()


def test_the_headline_is_the_mean_of_the_last(counts: Counts) -> None:
    assert mean_energy(counts, CHIP) == energy_up_to(counts, CHIP)[-1].mean() == 1449.0


def test_the_ann_of_the_same_shape_computes_every_layer_once(counts: Counts) -> None:
    assert ann_macs(counts) == 270


def test_the_stem_both_ways(counts: Counts) -> None:
    assert stem_energy(counts, CHIP) == {"once": 360.0, "per_step": 1080.0}


def test_a_stem_of_two_layers_is_reported_whole(counts: Counts) -> None:
    second = layer("stem2", "real", [1, 0, 0], [[0, 0]] * 3, [[1, 1], [0, 0], [0, 0]])
    deeper = Counts(3, 2, (counts.layers[0], second, *counts.layers[1:]))
    assert [found.layer.name for found in deeper.stem] == ["stem", "stem2"]
    assert stem_energy(deeper, CHIP) == {"once": 720.0, "per_step": 2160.0}


def test_the_formula_is_rate_times_flop(counts: Counts) -> None:
    expected = [0.2 * 120, 0.2 * 120, 0.5 * 120]
    assert formula_operations(counts.layers[1]).tolist() == pytest.approx(expected)
    assert formula_operations(counts.layers[0]).tolist() == [0, 0, 0]


def test_a_network_of_spikes_alone_has_no_stem() -> None:
    only = layer("conv", "spikes", [1, 1], [[5], [6]], [[5], [6]])
    counts = Counts(2, 1, (only,))
    assert counts.stem == ()
    assert stem_energy(counts, CHIP) == {"once": 0.0, "per_step": 0.0}
