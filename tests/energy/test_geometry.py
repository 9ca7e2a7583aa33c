"""Fan-out: hand-countable maps, then any geometry against autograd and torch's own FLOP counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.energy.foreign import geometry
from tser_cli.energy.geometry import fan_out_1d, uncountable

EVEN_SAME = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


CORNERS = [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(1, 1, 3, padding=1), CORNERS),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), CORNERS),
        (nn.Conv2d(1, 5, 3, padding=1), [[5 * n for n in row] for row in CORNERS]),
        (nn.Conv2d(4, 6, 3, groups=2), [[3, 3, 3]] * 3),
        (nn.Conv2d(2, 3, 1, stride=2), [[3, 0, 3, 0], [0, 0, 0, 0], [3, 0, 3, 0]]),
        (nn.Conv2d(1, 1, 3, padding=1), [[1]]),
        (nn.Conv2d(1, 1, (1, 2), padding="valid"), [[1, 2, 2, 1]]),
        (nn.Conv2d(1, 1, (1, 3), padding="same"), [[2, 3, 3, 2]]),
        # The odd zero of an even kernel comes after.
        (nn.Conv2d(1, 1, (1, 2), padding="same"), [[1, 2, 2]]),
    ],
    ids=str,
)
def test_maps_that_can_be_counted_by_hand(layer: nn.Conv2d, expected: list[list[int]]) -> None:
    height, width = len(expected), len(expected[0])
    found = geometry(layer, (1, 1, height, width))
    assert found.fan_out_P.view(height, width).tolist() == expected
    assert found.macs == layer.in_channels * sum(map(sum, expected))


def test_the_formula_counts_the_padding_and_groups_divide_both() -> None:
    assert geometry(nn.Conv2d(1, 1, 3, padding=1), (1, 1, 3, 3)).macs_formula == 81
    grouped = geometry(nn.Conv2d(4, 6, 3, groups=2), (1, 1, 3, 3))
    assert (grouped.macs, grouped.macs_formula, grouped.outputs) == (4 * 27, 4 * 27, 6)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ((5, 2, 1, (0, 0), 3), [1, 1, 0, 1, 1]),
        ((5, 3, 1, (2, 2), 2), [2, 2, 3, 2, 2]),
        ((4, 3, 2, (0, 0), 1), [1, 1, 1, 0]),  # a stride leaves the last position out
    ],
)
def test_dilation_and_stride_along_one_axis(axis: Any, expected: list[int]) -> None:
    assert fan_out_1d(*axis)[0].tolist() == expected


@pytest.mark.parametrize(("shape", "rows"), [((5, 7), 1), ((5, 2, 4, 7), 8)])
def test_linear_feeds_every_output_of_each_vector(shape: tuple[int, ...], rows: int) -> None:
    found = geometry(nn.Linear(7, 3), shape)
    assert found.fan_out_P.tolist() == [3]
    assert (found.neurons_in, found.outputs) == (7 * rows, 3 * rows)
    assert found.macs == found.macs_formula == 21 * rows


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        *((nn.Conv2d(1, 1, 3, padding=1, padding_mode=m), m) for m in ("reflect", "circular")),
        *((x, type(x).__name__) for x in (nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1))),
        (nn.LSTM(1, 1), "LSTM"),
    ],
    ids=repr,
)
def test_what_can_not_be_counted_says_why(layer: nn.Module, said: str) -> None:
    assert said in uncountable(layer)
    assert not uncountable(nn.Conv2d(1, 1, 3, padding=1))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, int, int]:
    """Any convolution with a map that it accepts."""
    groups = draw(st.integers(1, 3))
    pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
    settings: dict[str, Any] = {
        "kernel_size": draw(pairs),
        "dilation": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "groups": groups,
    }
    settings["padding"] = draw(
        st.sampled_from(["same", "valid"]) | st.tuples(st.integers(0, 3), st.integers(0, 3))
    )
    settings["stride"] = 1 if settings["padding"] == "same" else draw(pairs)
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    return nn.Conv2d(inputs, outputs, **settings), draw(st.integers(1, 9)), draw(st.integers(1, 9))


@EVEN_SAME
@given(convolutions())
def test_any_fan_out_is_the_gradient_of_a_sum_through_weights_of_one(
    case: tuple[nn.Conv2d, int, int],
) -> None:
    layer, height, width = case
    x = torch.zeros(1, layer.in_channels, height, width, dtype=torch.float64, requires_grad=True)
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
    try:
        outputs = F.conv2d(x, ones, None, *shape)
    except RuntimeError:
        assume(False)
    outputs.sum().backward()
    assert x.grad is not None
    found = geometry(layer, (1, 1, height, width))
    expected = x.grad[0].flatten(1).long()
    assert (found.fan_out_P == expected).all()
    assert found.macs == int(expected.sum())
    assert found.neurons_in == x.numel()
    assert found.outputs == outputs.numel()


@EVEN_SAME
@given(convolutions())
def test_the_formula_is_what_torch_calls_flop(case: tuple[nn.Conv2d, int, int]) -> None:
    layer, height, width = case
    x = torch.zeros(1, layer.in_channels, height, width)
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            layer(x)
    except RuntimeError:
        assume(False)
    assert 2 * geometry(layer, (1, 1, height, width)).macs_formula == counter.get_total_flops()
