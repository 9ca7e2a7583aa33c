"""The sums behind the counts, exact in integers and cheap: one pass over a layer's input."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.energy.counts import REAL, SIGNED, SPIKES, SUMS
from tser_cli.energy.geometry import ConvShape

EXACT = 2**24  # below it, float32 adds whole numbers exactly
PIECE = 2**15  # up to here torch stays on one thread, and the passes of a check in its cache

NOT_OF_KIND, TOO_LARGE = 1, 2
ALLOWED = {SPIKES: "0 and 1", SUMS: "whole numbers from 0"}


def count(x: Tensor, kind: str, fan_out_P: Tensor) -> Tensor:
    """[3, B] int64: non-zero inputs, events and value of each of the B samples of `x`.

    `x`: [B, C, H, W] or [B, ..., features]; `fan_out_P`: see `Geometry`. Events are non-zero inputs
    x fan-out, value is the sum of inputs x fan-out. Events and value of real inputs are 0.
    """
    if kind == REAL:
        nonzero_B = (x != 0).flatten(1).sum(1)
        return torch.stack((nonzero_B, torch.zeros_like(nonzero_B), torch.zeros_like(nonzero_B)))
    # Channels first, in float32, where every partial sum is a whole number below 2^24 and so exact
    # in any order; what is left, a map of one channel's size, is weighted in int64. A convolution
    # with weights of one would say the same at the price of the layer itself.
    value_BP = channel_sums(x).long()
    nonzero_BP = channel_sums(x.clamp(max=1)).long() if kind == SUMS else value_BP
    events_B = accumulates(nonzero_BP, fan_out_P)
    value_B = accumulates(value_BP, fan_out_P) if kind == SUMS else events_B
    return torch.stack((nonzero_BP.sum(1), events_B, value_B))


def accumulates(sums_BP: Tensor, fan_out_P: Tensor) -> Tensor:
    """Sum of inputs x fan-out of each sample, from the sums over channels: [B, P], [P] -> [B]."""
    return (sums_BP * fan_out_P).sum(1)


def channel_sums(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sum over channels at each position: [B, C, H, W] -> [B, H * W].

    A linear layer has one position: [B, ..., features] -> [B, 1].
    """
    x_BCP = x if x.dim() == 4 else x.flatten(1).unsqueeze(-1)
    return x_BCP.sum(1, dtype=dtype).flatten(1)


def fault(x: Tensor, kind: str) -> Tensor:
    """Return what is wrong with the data of a layer that spikes drive: 0, NOT_OF_KIND or TOO_LARGE.

    A scalar on the device of `x`, so that nothing waits for it.
    """
    if kind == SPIKES:
        # x - x^2 is exactly 0 for 0 and 1 alone, and NaN for NaN and infinity.
        return _ranges(torch.addcmul(p, p, p, value=-1) for p in pieces(x)).ne(0).any().long()
    fractions, values = _ranges(piece.frac() for piece in pieces(x)), _ranges(pieces(x))
    not_whole = fractions.ne(0).any() | values.lt(0).any()
    too_large = values.amax().double() * (x.shape[1] if x.dim() == 4 else x[0].numel()) >= EXACT
    return torch.where(not_whole, NOT_OF_KIND, torch.where(too_large, TOO_LARGE, 0))


def fault_message(layer: str, kind: str, code: int) -> str:
    """Return the message for a `fault` of a layer declared to be fed with `kind`."""
    if code == TOO_LARGE:
        return f"layer {layer} meets sums of spikes that are too large to be counted exactly"
    return (
        f"layer {layer} is declared to be fed with {kind}, but meets values other than "
        f"{ALLOWED[kind]}; declare what feeds it, or look for what comes between neurons and layer"
    )


def pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Return all elements of `x` as flat views in the order of its memory, small ones on a CPU."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    flat = x.reshape(-1)
    return torch.split(flat, PIECE) if x.device.type == "cpu" else (flat,)


def _ranges(parts: Iterable[Tensor]) -> Tensor:
    """Least and greatest value of each part, [parts, 2]; NaN where a part holds NaN."""
    return torch.stack([torch.stack(torch.aminmax(part)) for part in parts])


def find_kind(x: Tensor) -> str:
    """Return what `x` is made of: spikes, signed, sums, real, or "" where it is 0 throughout."""
    if not x.is_floating_point():
        x = x.float()
    if not x.numel():
        return ""
    low, high = _ranges(pieces(x)).unbind(1)
    least, most = float(low.amin()), float(high.amax())
    if least == most == 0:
        return ""
    whole = bool(_ranges(piece.frac() for piece in pieces(x)).eq(0).all())
    if not whole:  # NaN and infinity are not whole either: their fraction is NaN
        return REAL
    if most <= 1 and least >= -1:
        return SPIKES if least >= 0 else SIGNED
    return SUMS


def effective_operations(
    x: Tensor,
    weight: Tensor,
    conv: ConvShape | None,
    sizes: tuple[int, ...],
    fan_out_P: Tensor,
    events_B: Tensor | None,
) -> Tensor:
    """Non-zero inputs x the non-zero weights that read them, of each row of `x`, int64 [B].

    That is what NeuroBench counts. `x`: [B, C, P, 1], [B, C, H, W] or [B, rows * features].
    `sizes`: of the map that a convolution reads. `events_B`: what `count` said, None for real
    inputs.
    """
    used = weight.detach().ne(0)
    if bool(used.all()):
        # Each weight that is read counts: the fan-out says how many there are.
        return count(x.ne(0).float(), SPIKES, fan_out_P)[1] if events_B is None else events_B
    fired = x.ne(0)
    if conv is None:
        readers = used.sum(0)
        return (fired.reshape(len(x), -1, len(readers)) * readers).sum((1, 2))
    # Each input channel alone, with the number of its non-zero weights at each tap as its kernel;
    # in float64, as there is no convolution of integers and a row may pass 2^24.
    maps = fired.reshape(*fired.shape[:2], *sizes).double()
    axes = len(conv.kernel) - 1
    if conv.transposed:
        kernel = used.sum(1).double().unsqueeze(1)
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes]
        padding, extra = tuple(before for before, _ in conv.padding), conv.output_padding
        out = function(maps, kernel, None, conv.stride, padding, extra, len(kernel), conv.dilation)
    else:
        group = conv.out_channels // conv.groups
        per_tap = used.reshape(conv.groups, group, *used.shape[1:]).sum(1).flatten(0, 1)
        kernel = per_tap.double().unsqueeze(1)
        zeros = [edge for pair in reversed(conv.padding) for edge in pair]
        convolve = (F.conv1d, F.conv2d, F.conv3d)[axes]
        out = convolve(F.pad(maps, zeros), kernel, None, conv.stride, 0, conv.dilation, len(kernel))
    return out.flatten(1).sum(1).round().to(torch.int64)
