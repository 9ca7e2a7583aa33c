"""Spikes of 0 and c: c folds into the weights, so that they count as spikes of 0 and 1 do."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.energy.foreign import assert_same
from tser_cli.base.errors import TserError
from tser_cli.energy import tally
from tser_cli.energy.any_network.network_counter import TrialCounter, as_declared, count_operations
from tser_cli.energy.counts import Counts


class Layers(nn.Module):
    """A convolution, a linear layer and a weight that is multiplied, each fed with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.fc = nn.Linear(2 * 5 * 5, 4)
        self.w = nn.Parameter(torch.ones(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).sum() + self.fc(x.flatten(1)) + (x @ self.w).sum()


def counter_of(net: nn.Module, *batches: Tensor) -> TrialCounter:
    with torch.no_grad(), count_operations(net.eval(), "inside", 1, detailed=True) as counter:
        for batch in batches:
            net(batch)
    return counter


def spikes(*shape: int) -> Tensor:
    torch.manual_seed(3)
    return torch.rand(shape).gt(0.6).float()


def unscaled(counts: Counts) -> Counts:
    """The counts without what tells scaled spikes from those of 1."""
    layers = tuple(
        replace(one, layer=replace(one.layer, scale=1.0), binary_TI=None, total_TI=None)
        for one in counts.layers
    )
    return replace(counts, layers=layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("c", [1.5, 2.0, 0.1, 255.0, 1e6])
def test_spikes_of_any_size_count_as_spikes_of_one(c: float, dtype: torch.dtype) -> None:
    x, net = spikes(4, 2, 5, 5), Layers().to(dtype)
    batches = [(x * c).to(dtype)[:1], torch.zeros(2, 2, 5, 5).to(dtype), (x * c).to(dtype)[1:]]
    found = counter_of(net, *batches)
    ones = [part.ne(0).to(dtype) for part in batches]
    plain = counter_of(Layers().to(dtype), *ones)
    size = float(torch.tensor(c).to(dtype))
    assert found.folded() == dict.fromkeys(("conv", "fc", "w"), size)
    assert found.kinds() == plain.kinds() == dict.fromkeys(("conv", "fc", "w"), "spikes")
    assert not found.differing()
    counts, expected = unscaled(found.counts()), unscaled(plain.counts())
    assert_same(counts, expected)
    # By hand: an input feeds 4 outputs of fc, and 6 of w.
    fed = x.flatten(1).sum(1).long().tolist()
    for layer, fan_out in zip(counts.layers[1:], (4, 6), strict=True):
        assert layer.value_TI.tolist() == [[n * fan_out for n in (*fed[:1], 0, 0, *fed[1:])]]
    met = F.conv2d(x, torch.ones(3, 2, 3, 3), stride=2, padding=1).sum((1, 2, 3)).long().tolist()
    assert counts.layers[0].value_TI.tolist() == [[*met[:1], 0, 0, *met[1:]]]


@pytest.mark.parametrize("c", [1.5, 2.0])
def test_spikes_of_either_sign_are_signed(c: float) -> None:
    signed = spikes(4, 2, 5, 5) - 2 * spikes(4, 2, 5, 5).flip(0) * spikes(4, 2, 5, 5)
    found = counter_of(Layers(), signed * c, signed.abs() * c)
    assert set(found.kinds().values()) == {"signed"}
    plain = counter_of(Layers(), signed, signed.abs())
    assert_same(unscaled(found.counts()), unscaled(plain.counts()))


@pytest.mark.parametrize(
    ("sizes", "kind", "twos"),
    [((1.0, 1.5), "real", 0), ((2.0, 1.0), "sums", 3), ((1.5, 2.0), "real", 0)],
)
def test_calls_of_different_sizes_have_no_size_in_common(
    sizes: tuple[float, float], kind: str, twos: int
) -> None:
    x = spikes(4, 2, 5, 5)
    found = counter_of(Layers(), *(x * c for c in sizes))
    assert found.folded() == {}
    for layer in found.counts().layers:
        assert layer.layer.input_kind == kind
        plain = (layer.value_TI != 0).any()
        assert plain == (kind == "sums")
        if twos:
            assert layer.value_TI.sum() * 2 == layer.events_TI.sum() * twos
        # Both factors of a product of real values count, one of spikes alone does.
        assert (layer.nonzero_TI <= layer.layer.neurons_in).all()


def test_averages_stay_real_and_products_of_activations_as_they_were() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(F.avg_pool2d(x, 2).flatten(1))
            return y + (x.flatten(2) * 1.5 @ x.flatten(2).transpose(1, 2).sin()).sum()

    found = counter_of(Two(), spikes(6, 1, 4, 4))
    assert found.folded() == {}
    assert set(found.kinds().values()) == {"real"}


def test_a_network_that_declares_its_inputs_is_held_to_them(lively: Any) -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x * 2)
            return y

    net, x = Doubled().eval(), torch.eye(3)
    with torch.no_grad(), count_operations(net, "inside", 1) as counter:
        counter.declared = {"fc": "sums"}
        net(x)
    assert as_declared(counter.counts(), net, {"fc": "sums"}).layers[0].value_TI.tolist() == [
        [4] * 3
    ]
    with pytest.raises(TserError, match="declared to be fed with spikes"):
        as_declared(counter.counts(), net, {"fc": "spikes"})


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.0, 1.5, 1.5], 1.5),
        ([0.0, -1.5], -1.5),
        ([-0.25, 0.25], -0.25),
        ([0.0, 1.5, 1.5000001], 0.0),
        ([0.0, 0.0], 0.0),
        ([0.0, inf], 0.0),
        ([nan, 2.0], 0.0),
        ([2.0, nan], 0.0),
    ],
)
@pytest.mark.parametrize("gap", [0, 2 * tally.PIECE])
def test_the_size_of_spikes_is_found(values: list[float], scale: float, gap: int) -> None:
    x = torch.tensor([values[0], *[0.0] * gap, *values[1:]])
    assert tally.find_scale(x) == scale
