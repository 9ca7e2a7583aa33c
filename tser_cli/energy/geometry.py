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

# Layers with weights whose cost is not known: a count without them would be too low.
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
    """

    fan_out_P: Tensor
    neurons_in: int
    outputs: int
    macs: int
    macs_formula: int


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


def fan_out_1d(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> tuple[Tensor, int]:
    """Return how many (output, tap) pairs read each position of one axis, and the outputs.

    Output o reads, with tap k, position o * stride + k * dilation - padding before the axis.
    """
    outputs = (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
    read = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation - padding[0]
    inside = read[(read >= 0) & (read < size)]
    return torch.bincount(inside, minlength=size), outputs


def transposed_fan_out_1d(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, extra: int
) -> tuple[Tensor, int]:
    """Return the same of a transposed convolution; `extra` is its output padding."""
    outputs = (size - 1) * stride - sum(padding) + dilation * (kernel - 1) + extra + 1
    fed = torch.arange(size)[:, None] * stride + torch.arange(kernel) * dilation - padding[0]
    return ((fed >= 0) & (fed < outputs)).sum(1), outputs


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


# Cached: a network has few shapes, and every pass that is counted asks for all of them again.
@lru_cache(maxsize=512)
def shape_geometry(shape: ConvShape, sizes: tuple[int, ...]) -> Geometry:
    """Return the geometry of a convolution on maps of `sizes`."""
    axes = list(zip(sizes, shape.kernel, shape.stride, shape.padding, shape.dilation, strict=True))
    if shape.transposed:
        extra = shape.output_padding
        found = [transposed_fan_out_1d(*a, e) for a, e in zip(axes, extra, strict=True)]
    else:
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
