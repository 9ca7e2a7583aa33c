"""How many operations a layer's inputs cause, exact in integers: fan-out x inputs.

A spike at position p of a convolution causes one accumulate for every (output, weight) pair that
reads p: its fan-out. At the border, and between strides, fewer outputs read a position than the
kernel has taps; summed over a layer's spikes the fan-out is therefore the exact number of synaptic
operations, where rate x FLOP counts zeros of the padding too.

First the fan-out of a layer's geometry, then the sums over what it is fed with, in one pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tser_cli.energy.counts import REAL, SIGNED, SPIKES, SUMS, ConvShape

# Layers with weights whose cost is not known: a count without them would be too low.
OTHER_LAYERS = (
    *(nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase),
)
EXACT = 2**24  # below it, float32 adds whole numbers exactly
PIECE = 2**17  # half a megabyte in fp32: the passes of a check stay in a core's cache

NOT_OF_KIND, TOO_LARGE = 1, 2
ALLOWED = {SPIKES: "0 and 1", SUMS: "whole numbers from 0"}


@dataclass(frozen=True)
class Geometry:
    """What a layer costs on one image at one input size; nothing here depends on the data.

    `fan_out_P`: int64, outputs fed by each of the P positions, the same for every channel.
    `neurons_in`, `outputs`: input and output values. `macs`: multiply-accumulates on real inputs,
    that is channels x sum of the fan-out: what the layer costs where every input counts, and
    exactly the synaptic operations of an input of ones. `macs_formula`: the classical figure
    outputs x kernel x in_channels / groups, which counts the zeros of the padding as inputs.
    """

    fan_out_P: Tensor
    neurons_in: int
    outputs: int
    macs: int
    macs_formula: int


def fan_out_1d(
    size: int,
    kernel: int,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    extra: int | None = None,
) -> tuple[Tensor, int]:
    """Return how many (output, tap) pairs read each position of one axis, and the outputs.

    Output o reads, with tap k, position o * stride + k * dilation - padding before the axis. In a
    transposed convolution, of output padding `extra`, position p feeds output p * stride + ...
    """
    if extra is not None:
        outputs = (size - 1) * stride - sum(padding) + dilation * (kernel - 1) + extra + 1
        fed = torch.arange(size)[:, None] * stride + torch.arange(kernel) * dilation - padding[0]
        return ((fed >= 0) & (fed < outputs)).sum(1), outputs
    outputs = (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
    read = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation - padding[0]
    inside = read[(read >= 0) & (read < size)]
    return torch.bincount(inside, minlength=size), outputs


def uncountable(module: nn.Module) -> str:
    """Why the operations of a module can't be counted, or "" where they can or it has none."""
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return (
            f'it pads with "{module.padding_mode}", so that some inputs are read again in the '
            'padding; use padding_mode="zeros"'
        )
    if isinstance(module, OTHER_LAYERS):
        name = type(module).__name__
        return f"the cost of {name} is not known here; use Conv2d and Linear layers"
    return ""


def zeros_added(
    padding: str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Zeros (before, after) along each axis; "same" puts the odd one after, as torch does."""
    if padding == "valid":
        return tuple((0, 0) for _ in kernel)
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((zeros // 2, zeros - zeros // 2) for zeros in total)
    return tuple((zeros, zeros) for zeros in padding)


def shape_of(layer: nn.Conv2d) -> ConvShape:
    """Return the shape of a convolution module."""
    return ConvShape(
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        groups=layer.groups,
        kernel=layer.kernel_size,
        stride=layer.stride,
        padding=zeros_added(layer.padding, layer.kernel_size, layer.dilation),
        dilation=layer.dilation,
    )


def stored(layer: Any, weight: Tensor) -> tuple[int, int]:
    """Return the bytes of a stored weight, and its bits: what the layer says, or the tensor's."""
    # Layers that are trained with integer weights keep them as floats, and say `weight_bytes`.
    size = int(getattr(layer, "weight_bytes", 0))
    return (size, int(layer.bits)) if size else (weight.element_size(), 8 * weight.element_size())


def fan_in(conv: ConvShape | None, weight: Sequence[int]) -> int:
    """Return how many inputs one output sums, away from the padding; `weight`: its shape."""
    return weight[1] if conv is None else conv.in_channels // conv.groups * prod(conv.kernel)


# Cached: a network has few shapes, and every pass that is counted asks for all of them again.
@lru_cache(maxsize=512)
def shape_geometry(shape: ConvShape, sizes: tuple[int, ...]) -> Geometry:
    """Return the geometry of a convolution on maps of `sizes`."""
    extra = shape.output_padding if shape.transposed else (None,) * len(sizes)
    axes = zip(sizes, shape.kernel, shape.stride, shape.padding, shape.dilation, extra, strict=True)
    found = [fan_out_1d(*axis) for axis in axes]
    # The fan-out is separable: (out_channels / groups) x outer product of the axes' fan-outs.
    fan_out_P = torch.tensor([shape.out_channels // shape.groups])
    for fan_out, _ in found:
        fan_out_P = torch.outer(fan_out_P, fan_out).flatten()
    positions = prod(outputs for _, outputs in found)
    # The classical figure of a transposed convolution counts a kernel for every input, not output.
    dense = prod(sizes) if shape.transposed else positions
    taps = prod(shape.kernel) * (shape.in_channels // shape.groups)
    return Geometry(
        fan_out_P=fan_out_P,
        neurons_in=shape.in_channels * prod(sizes),
        outputs=shape.out_channels * positions,
        macs=shape.in_channels * int(fan_out_P.sum()),
        macs_formula=shape.out_channels * dense * taps,
    )


def layer_geometry(
    conv: ConvShape | None, weight: tuple[int, ...], shape: tuple[int, ...], features: int
) -> Geometry:
    """Return the geometry of a layer for one image and step of its input of `shape`.

    `conv` None: a linear layer, whose rows of `features` may hold several vectors.
    """
    if conv is not None:
        return shape_geometry(conv, shape[2:])
    outputs, macs = features // weight[1] * weight[0], features * weight[0]
    return Geometry(torch.tensor([weight[0]]), features, outputs, macs, macs)


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
    too_large = values.amax().double() * summed(x) >= EXACT
    return torch.where(not_whole, NOT_OF_KIND, torch.where(too_large, TOO_LARGE, 0))


def summed(x: Tensor) -> int:
    """Return how many inputs `channel_sums` adds at each position."""
    return x.shape[1] if x.dim() == 4 else x[0].numel()


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


def are_spikes(x: Tensor) -> bool:
    """Return whether floating `x` is made of 0 and 1 alone: `fault` at once, up to the first."""
    return all(
        torch.stack(torch.aminmax(torch.addcmul(p, p, p, value=-1))).tolist() == [0, 0]
        for p in pieces(x)
    )


def find_kind(x: Tensor) -> str:
    """Return what `x` is made of: spikes, signed, sums, real, or "" where it is 0 throughout."""
    return find_range(x)[0]


def find_range(x: Tensor) -> tuple[str, float, float]:
    """Return what `x` is made of, and its least and greatest value."""
    if not x.is_floating_point():
        x = x.float()
    if not x.numel():
        return "", 0.0, 0.0
    low, high = _ranges(pieces(x)).unbind(1)
    least, most = float(low.amin()), float(high.amax())
    if least == most == 0:
        return "", least, most
    whole = bool(_ranges(piece.frac() for piece in pieces(x)).eq(0).all())
    if not whole:  # NaN and infinity are not whole either: their fraction is NaN
        return REAL, least, most
    if most <= 1 and least >= -1:
        return SPIKES if least >= 0 else SIGNED, least, most
    return SUMS, least, most


def has_scale(x: Tensor, scale: float) -> bool:
    """Return whether `x` is made of 0 and `scale` alone."""
    # x (x - c) is 0 for 0 and c alone, and NaN for NaN and infinity.
    return bool(_ranges((piece - scale).mul_(piece) for piece in pieces(x)).eq(0).all())


def find_scale(x: Tensor) -> float:
    """Return c where `x` is made of 0 and c alone, -c where -c is among it, 0 where neither."""
    scale, negative = 0.0, False
    for piece in pieces(x if x.is_floating_point() else x.float()):
        low, high = (float(value) for value in torch.aminmax(piece))
        size = max(-low, high)
        if size == 0:
            continue
        same = scale in (0.0, size) and size < inf  # not so with NaN
        # The first piece of real values says no: they are not read to the end.
        if not same or not has_scale(piece.abs(), size):
            return 0.0
        scale, negative = size, negative or low < 0
    return -scale if negative else scale


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
