"""Fan-out and sums: hand-countable maps, then any geometry against brute force and torch's FLOP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.energy.foreign import geometry
from tser_cli.energy import tally
from tser_cli.energy.tally import NOT_OF_KIND, TOO_LARGE, count, fault

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
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
    assert tally.fan_out_1d(*axis)[0].tolist() == expected


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
    assert said in tally.uncountable(layer)
    assert not tally.uncountable(nn.Conv2d(1, 1, 3, padding=1))


def test_spikes_sums_and_real_values_by_hand() -> None:
    x = torch.zeros(4, 1, 3, 3)
    x[0, 0, 0, 0] = x[1, 0, 0, 1] = x[2, 0, 1, 1] = 1  # a corner, an edge, the centre
    x[3] = 1
    layer = nn.Conv2d(1, 1, 3, padding=1)
    counted = count(x, "spikes", geometry(layer, tuple(x.shape)).fan_out_P)
    assert counted.tolist() == [[1, 1, 1, 9], [4, 6, 9, 49], [4, 6, 9, 49]]
    # A sum of two spikes is one event and two additions; real inputs have no events.
    summed, real = torch.tensor([[0.0, 2.0, 1.0, 3.0]]), torch.tensor([[0.0, -0.5, 1.0, 7.25]])
    assert count(summed, "sums", torch.tensor([10])).tolist() == [[3], [30], [60]]
    assert count(real, "real", torch.tensor([10])).tolist() == [[3], [0], [0]]


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
@given(convolutions(), st.sampled_from([1, 4]), st.booleans())
def test_any_convolution_equals_brute_force(
    case: tuple[nn.Conv2d, int, int], greatest: int, channels_last: bool
) -> None:
    """Fan-out: the gradient of a sum through weights of one; formula: what torch calls FLOP."""
    layer, height, width = case
    size = (2, layer.in_channels, height, width)
    x = torch.randint(0, greatest + 1, size).double().requires_grad_(True)
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
    flop = FlopCounterMode(display=False)
    try:
        with flop:
            outputs = F.conv2d(x, ones, None, *shape)
    except RuntimeError:
        assume(False)
    outputs.sum().backward()
    assert x.grad is not None
    found, expected = geometry(layer, size), x.grad[0].flatten(1).long()
    assert (found.fan_out_P == expected).all()
    assert found.macs == int(expected.sum())
    assert found.neurons_in == x[0].numel()
    assert found.outputs == outputs[0].numel()
    assert 2 * 2 * found.macs_formula == flop.get_total_flops()
    kind, fed = "spikes" if greatest == 1 else "sums", x.detach().float()
    if channels_last:
        fed = fed.contiguous(memory_format=torch.channels_last)
    events = F.conv2d(x.detach().ne(0).double(), ones, None, *shape)
    counted = count(fed, kind, found.fan_out_P)
    assert fault(fed, kind) == 0
    assert counted[0].tolist() == fed.flatten(1).count_nonzero(1).tolist()
    assert counted[1].tolist() == events.sum((1, 2, 3)).tolist()
    assert counted[2].tolist() == outputs.sum((1, 2, 3)).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_layers_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    x = torch.ones(2, 4099, 3, 3, dtype=dtype)
    layer = nn.Conv2d(4099, 1021, 3, padding=1, device="meta")
    counted = count(x, "spikes", geometry(layer, tuple(x.shape)).fan_out_P)
    assert counted[1].tolist() == [4099 * 1021 * 49] * 2
    assert fault(x, "spikes") == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["spikes", "sums"])
def test_one_wrong_value_among_many_is_found(dtype: torch.dtype, kind: str) -> None:
    x = torch.randint(0, 2, (3, 5, 64, 65)).to(dtype)
    assert fault(x, kind) == 0
    for value in (0.5, -1.0, 1.5, 0.9921875, 1e-7, float("nan"), float("inf"), -float("inf")):
        x[2, 4, 63, 64] = value
        assert fault(x, kind) == NOT_OF_KIND, value
    assert fault(x.contiguous(memory_format=torch.channels_last), kind) == NOT_OF_KIND


def test_a_two_is_a_sum_and_no_spike_and_minus_zero_is_no_fault() -> None:
    two, zero = torch.tensor([[0.0, 2.0]]), torch.tensor([[-0.0, 1.0]])
    assert (fault(two, "sums"), fault(two, "spikes")) == (0, NOT_OF_KIND)
    assert (fault(zero, "sums"), fault(zero, "spikes")) == (0, 0)


def test_sums_that_float32_would_round_are_told() -> None:
    x = torch.full((1, 4), 2.0**22 - 1)
    assert fault(x, "sums") == 0
    assert count(x, "sums", torch.tensor([3]))[2].item() == 3 * 4 * (2**22 - 1)
    assert fault(x + 1, "sums") == TOO_LARGE
    assert "layer2.conv1 meets sums" in tally.fault_message("layer2.conv1", "sums", TOO_LARGE)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: x.contiguous(memory_format=torch.channels_last),
    lambda x: x.transpose(2, 3),
    lambda x: x[:, ::2],
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_hold_every_element_once(layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(torch.arange(2.0 * 6 * 160 * 180).reshape(2, 6, 160, 180))
    parts = tally.pieces(x)
    assert len(parts) > 1
    assert torch.cat(parts).sort().values.equal(x.flatten().sort().values)
