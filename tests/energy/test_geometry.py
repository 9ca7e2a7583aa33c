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


def fan_out_map(layer: nn.Conv2d, height: int, width: int) -> list[list[int]]:
    maps: list[list[int]] = (
        geometry(layer, (1, 1, height, width)).fan_out_P.view(height, width).tolist()
    )
    return maps


def test_three_by_three_with_padding_corner_four_edge_six_centre_nine() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1)
    assert fan_out_map(layer, 3, 3) == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert geometry(layer, (1, 1, 3, 3)).macs == 49
    assert geometry(layer, (1, 1, 3, 3)).macs_formula == 81


def test_output_channels_multiply_the_fan_out() -> None:
    assert fan_out_map(nn.Conv2d(1, 5, 3, padding=1), 3, 3)[1] == [30, 45, 30]


def test_one_by_one_with_stride_two_feeds_every_other_position() -> None:
    layer = nn.Conv2d(2, 3, 1, stride=2)
    assert fan_out_map(layer, 3, 4) == [[3, 0, 3, 0], [0, 0, 0, 0], [3, 0, 3, 0]]


def test_groups_divide_the_fan_out() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    assert fan_out_map(layer, 3, 3) == [[3, 3, 3]] * 3
    assert geometry(layer, (1, 1, 3, 3)).macs == 4 * 27
    assert geometry(layer, (1, 1, 3, 3)).outputs == 6


def test_depthwise_convolution() -> None:
    assert geometry(nn.Conv2d(4, 4, 3, padding=1, groups=4), (1, 1, 3, 3)).macs == 4 * 49


def test_dilation_spreads_the_taps() -> None:
    assert fan_out_1d(5, 2, 1, (0, 0), 3)[0].tolist() == [1, 1, 0, 1, 1]
    assert fan_out_1d(5, 3, 1, (2, 2), 2)[0].tolist() == [2, 2, 3, 2, 2]


def test_a_stride_leaves_the_last_position_out() -> None:
    assert fan_out_1d(4, 3, 2, (0, 0), 1)[0].tolist() == [1, 1, 1, 0]


def test_a_map_smaller_than_the_padded_kernel() -> None:
    assert fan_out_map(nn.Conv2d(1, 1, 3, padding=1), 1, 1) == [[1]]


@pytest.mark.parametrize(("padding", "row"), [("valid", [1, 2, 2, 1]), ("same", [2, 3, 3, 2])])
def test_padding_by_name(padding: str, row: list[int]) -> None:
    kernel = (1, 2) if padding == "valid" else (1, 3)
    assert fan_out_map(nn.Conv2d(1, 1, kernel, padding=padding), 1, 4) == [row]


def test_same_padding_of_an_even_kernel_puts_the_odd_zero_after() -> None:
    layer = nn.Conv2d(1, 1, (1, 2), padding="same")
    assert fan_out_map(layer, 1, 3) == [[1, 2, 2]]


def test_linear_feeds_every_output() -> None:
    found = geometry(nn.Linear(7, 3), (5, 7))
    assert found.fan_out_P.tolist() == [3]
    assert (found.neurons_in, found.outputs, found.macs, found.macs_formula) == (7, 3, 21, 21)


def test_linear_on_several_vectors_an_image() -> None:
    found = geometry(nn.Linear(7, 3), (5, 2, 4, 7))
    assert (found.neurons_in, found.outputs, found.macs) == (56, 24, 168)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_is_refused(mode: str) -> None:
    assert mode in uncountable(nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode))
    assert not uncountable(nn.Conv2d(1, 1, 3, padding=1))


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.LSTM(1, 1)], ids=repr
)
def test_other_layers_with_weights_are_refused(layer: nn.Module) -> None:
    assert type(layer).__name__ in uncountable(layer)


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
