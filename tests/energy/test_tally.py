"""The sums and the checks of the data, alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.energy.foreign import geometry
from tser_cli.energy.tally import NOT_OF_KIND, TOO_LARGE, count, fault, fault_message, pieces

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def brute(layer: nn.Conv2d, x: Tensor) -> list[int]:
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
    totals: list[int] = F.conv2d(x.double(), ones, None, *shape).sum((1, 2, 3)).long().tolist()
    return totals


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


@given(st.data())
def test_any_convolution_equals_brute_force(data: st.DataObject) -> None:
    groups, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    layer = nn.Conv2d(
        groups * data.draw(st.integers(1, 2)),
        groups * data.draw(st.integers(1, 2)),
        (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))),
        stride=stride,
        padding=(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))),
        dilation=data.draw(st.integers(1, 2)),
        groups=groups,
    )
    size = (data.draw(st.integers(1, 3)), layer.in_channels, *data.draw(SIZES))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    greatest = data.draw(st.sampled_from([1, 4]))
    x = torch.randint(0, greatest + 1, size, generator=generator).float()
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    try:
        value = brute(layer, x)
    except RuntimeError:
        assume(False)
    kind = "spikes" if greatest == 1 else "sums"
    counted = count(x, kind, geometry(layer, size).fan_out_P)
    assert fault(x, kind) == 0
    assert counted[0].tolist() == x.flatten(1).count_nonzero(1).tolist()
    assert counted[1].tolist() == brute(layer, x != 0)
    assert counted[2].tolist() == value


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_layers_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    x = torch.ones(2, 4099, 3, 3, dtype=dtype)
    layer = nn.Conv2d(4099, 1021, 3, padding=1, device="meta")
    counted = count(x, "spikes", geometry(layer, tuple(x.shape)).fan_out_P)
    assert counted[1].tolist() == [4099 * 1021 * 49] * 2
    assert fault(x, "spikes") == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["spikes", "sums"])
@pytest.mark.parametrize(
    "value", [0.5, -1.0, 1.5, 0.9921875, 1e-7, float("nan"), float("inf"), -float("inf")]
)
def test_one_wrong_value_among_many_is_found(dtype: torch.dtype, kind: str, value: float) -> None:
    x = torch.randint(0, 2, (3, 5, 64, 65)).to(dtype)
    assert fault(x, kind) == 0
    x[2, 4, 63, 64] = value
    assert fault(x, kind) == NOT_OF_KIND
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
    assert "layer2.conv1 meets sums" in fault_message("layer2.conv1", "sums", TOO_LARGE)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: x.contiguous(memory_format=torch.channels_last),
    lambda x: x.transpose(2, 3),
    lambda x: x[:, ::2],
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_hold_every_element_once(layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(torch.arange(2.0 * 6 * 80 * 90).reshape(2, 6, 80, 90))
    parts = pieces(x)
    assert len(parts) > 1
    assert torch.cat(parts).sort().values.equal(x.flatten().sort().values)
