"""How many outputs each input position of a layer feeds: the cost of one spike there.

A spike at position p of a convolution causes one accumulate for every (output, weight) pair that
reads p: its fan-out. At the border, and between strides, fewer outputs read a position than the
kernel has taps; summed over a layer's spikes the fan-out is therefore the exact number of synaptic
operations, where rate x FLOP counts zeros of the padding too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn

PADDING = (
    'it pads with "{}", so that some inputs are read again in the padding; use padding_mode="zeros"'
)
UNKNOWN_LAYER = "the cost of {} is not known here; use Conv2d and Linear layers"
OTHER_LAYERS = (
    *(nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase),
)


@dataclass(frozen=True)
class Geometry:
    """What a layer costs on one image at one input size; nothing here depends on the data.

    `fan_out_P`: int64, outputs fed by each of the P positions, the same for every channel.
    `neurons_in`, `outputs`: input and output values. `macs`: multiply-accumulates on real inputs,
    that is channels x sum of the fan-out: what the layer costs where every input counts, and
    exactly the synaptic operations of an input of ones. `macs_formula`: the classical figure
    outputs x kernel x in_channels / groups, which counts the zeros of the padding as inputs.
    `sizes`: of the map that a convolution reads, () for a linear layer.
    """

    fan_out_P: Tensor
    neurons_in: int
    outputs: int
    macs: int
    macs_formula: int
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ConvShape:
    """What a convolution is, in one, two or three dimensions, apart from its input's size.

    `kernel`, `stride`, `dilation`, `padding` (zeros before and after) and `output_padding` have an
    element an axis. `transposed`: ConvTranspose, where an input feeds outputs i * stride + k *
    dilation - padding.
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()


def output_size(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> int:
    """Outputs along one axis: floor((size + padding - dilation (kernel - 1) - 1) / stride) + 1."""
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def transposed_size(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, extra: int
) -> int:
    """Outputs along one axis of a transposed convolution; `extra` is its output padding."""
    return (size - 1) * stride - sum(padding) + dilation * (kernel - 1) + extra + 1


def fan_out_1d(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> Tensor:
    """Number of (output, tap) pairs that read each position of one axis, int64 [size].

    Output o reads, with tap k, position o * stride + k * dilation - padding before the axis.
    """
    outputs = torch.arange(output_size(size, kernel, stride, padding, dilation))
    taps = torch.arange(kernel)
    positions = (outputs[:, None] * stride + taps * dilation - padding[0]).flatten()
    inside = positions[(positions >= 0) & (positions < size)]
    return torch.bincount(inside, minlength=size)


def transposed_fan_out_1d(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, extra: int
) -> Tensor:
    """Number of outputs that each position of one axis feeds in a transposed convolution."""
    outputs = transposed_size(size, kernel, stride, padding, dilation, extra)
    fed = torch.arange(size)[:, None] * stride + torch.arange(kernel) * dilation - padding[0]
    return ((fed >= 0) & (fed < outputs)).sum(1)


def uncountable(module: nn.Module) -> str:
    """Why the operations of a module can't be counted, or "" where they can or it has none."""
    if isinstance(module, nn.Conv2d):
        return "" if module.padding_mode == "zeros" else PADDING.format(module.padding_mode)
    return UNKNOWN_LAYER.format(type(module).__name__) if isinstance(module, OTHER_LAYERS) else ""


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


# Cached: a network has few shapes, and every pass that is counted asks for all of them again.
@lru_cache(maxsize=512)
def shape_geometry(shape: ConvShape, sizes: tuple[int, ...]) -> Geometry:
    """Return the geometry of a convolution on maps of `sizes`.

    The fan-out is separable: (out_channels / groups) x outer product of the axes' fan-outs. The
    classical figure of a transposed convolution counts a kernel for every input, not output.
    """
    axes = list(zip(sizes, shape.kernel, shape.stride, shape.padding, shape.dilation, strict=True))
    if shape.transposed:
        extended = [(*axis, e) for axis, e in zip(axes, shape.output_padding, strict=True)]
        fan_outs = [transposed_fan_out_1d(*axis) for axis in extended]
        positions, dense = prod(transposed_size(*axis) for axis in extended), prod(sizes)
    else:
        fan_outs = [fan_out_1d(*axis) for axis in axes]
        positions = dense = prod(output_size(*axis) for axis in axes)
    fan_out_P = torch.tensor([shape.out_channels // shape.groups])
    for fan_out in fan_outs:
        fan_out_P = torch.outer(fan_out_P, fan_out).flatten()
    taps = prod(shape.kernel) * (shape.in_channels // shape.groups)
    return Geometry(
        fan_out_P=fan_out_P,
        neurons_in=shape.in_channels * prod(sizes),
        outputs=shape.out_channels * positions,
        macs=shape.in_channels * int(fan_out_P.sum()),
        macs_formula=shape.out_channels * dense * taps,
        sizes=sizes,
    )


@lru_cache(maxsize=512)
def vectors_geometry(features: int, outputs: int, rows: int = 1) -> Geometry:
    """Return the geometry of a linear layer that is applied to `rows` vectors an image."""
    macs = rows * features * outputs
    return Geometry(
        fan_out_P=torch.tensor([outputs]),
        neurons_in=rows * features,
        outputs=rows * outputs,
        macs=macs,
        macs_formula=macs,
    )


def layer_geometry(
    conv: ConvShape | None, weight: tuple[int, ...], shape: tuple[int, ...], features: int
) -> Geometry:
    """Return the geometry of a layer for one image and step of its input of `shape`.

    `conv` None: a linear layer, whose rows of `features` may hold several vectors.
    """
    if conv is not None:
        return shape_geometry(conv, shape[2:])
    return vectors_geometry(weight[1], weight[0], features // weight[1])
