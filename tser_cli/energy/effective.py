"""Operations without those on weights of zero, as NeuroBench counts them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.energy.counts import REAL, SPIKES
from tser_cli.energy.geometry import ConvShape, Geometry
from tser_cli.energy.intercept import Operation
from tser_cli.energy.tally import tally


def effective_operations(
    x: Tensor, met: Operation, counted: Tensor, kind: str, geometry: Geometry
) -> Tensor:
    """Non-zero inputs x the non-zero weights that read them, of each row of `x`, int64 [B].

    `x`: [B, C, P, 1], [B, C, H, W] or [B, rows * features], as `calls.as_map` makes it. `counted`:
    what `tally` said of it.
    """
    assert met.weight is not None, "a layer has weights"
    used = met.weight.detach().ne(0)
    if bool(used.all()):
        if kind != REAL:
            return counted[1]
        return tally(x.ne(0).float(), SPIKES, geometry.fan_out_P.to(x.device))[1]
    fired = x.ne(0)
    if met.conv is None:
        readers = used.sum(0)
        return (fired.reshape(len(x), -1, len(readers)) * readers).sum((1, 2))
    return _convolved(fired, used, met.conv, geometry)


def _convolved(fired: Tensor, used: Tensor, conv: ConvShape, geometry: Geometry) -> Tensor:
    # Each input channel alone, with the number of its non-zero weights at each tap as its kernel.
    if conv.transposed:
        per_tap = used.sum(1)
    else:
        group = conv.out_channels // conv.groups
        per_tap = used.reshape(conv.groups, group, *used.shape[1:]).sum(1).flatten(0, 1)
    kernel = per_tap.double().unsqueeze(1)
    sizes = geometry.sizes
    maps = fired.reshape(*fired.shape[:2], *sizes).double()
    if conv.transposed:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(sizes) - 1]
        padding = tuple(before for before, _ in conv.padding)
        out = function(
            maps,
            kernel,
            None,
            conv.stride,
            padding,
            conv.output_padding,
            len(kernel),
            conv.dilation,
        )
    else:
        zeros = [edge for pair in reversed(conv.padding) for edge in pair]
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(sizes) - 1]
        out = convolve(F.pad(maps, zeros), kernel, None, conv.stride, 0, conv.dilation, len(kernel))
    return out.flatten(1).sum(1).round().to(torch.int64)
