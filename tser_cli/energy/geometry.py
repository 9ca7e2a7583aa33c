"""How many outputs each input position of a layer feeds: the cost of one spike there.

A spike at position p of a convolution causes one accumulate for every (output, weight) pair that
reads p: its fan-out. At the border, and between strides, fewer outputs read a position than the
kernel has taps; summed over a layer's spikes the fan-out is therefore the exact number of synaptic
operations, where rate x FLOP counts zeros of the padding too.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    fan_out_P: Tensor
    neurons_in: int
    outputs: int
    macs: int
    macs_formula: int


def output_size(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> int:
    """Outputs along one axis: floor((size + padding - dilation (kernel - 1) - 1) / stride) + 1."""
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


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


def uncountable(module: nn.Module) -> str:
    """Why the operations of a module can't be counted, or "" where they can or it has none."""
    if isinstance(module, nn.Conv2d):
        return "" if module.padding_mode == "zeros" else PADDING.format(module.padding_mode)
    return UNKNOWN_LAYER.format(type(module).__name__) if isinstance(module, OTHER_LAYERS) else ""


def paddings(layer: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros (before, after) along H and W; "same" puts the odd one after, as torch does."""
    if isinstance(layer.padding, str):
        if layer.padding == "valid":
            return (0, 0), (0, 0)
        height, width = (
            d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        )
        return (height // 2, height - height // 2), (width // 2, width - width // 2)
    height, width = layer.padding
    return (height, height), (width, width)


def conv_geometry(layer: nn.Conv2d, height: int, width: int) -> Geometry:
    """The geometry of a convolution on maps of [height, width].

    The fan-out is separable: (out_channels / groups) x outer product of the two axes' fan-outs.
    """
    shape = zip(layer.kernel_size, layer.stride, paddings(layer), layer.dilation, strict=True)
    axes = [(size, *axis) for size, axis in zip((height, width), shape, strict=True)]
    rows, columns = (fan_out_1d(*axis) for axis in axes)
    fan_out_HW = torch.outer(rows, columns) * (layer.out_channels // layer.groups)
    outputs = layer.out_channels * prod(output_size(*axis) for axis in axes)
    taps = prod(layer.kernel_size) * (layer.in_channels // layer.groups)
    return Geometry(
        fan_out_P=fan_out_HW.flatten(),
        neurons_in=layer.in_channels * height * width,
        outputs=outputs,
        macs=layer.in_channels * int(fan_out_HW.sum()),
        macs_formula=outputs * taps,
    )


def linear_geometry(layer: nn.Linear, rows: int = 1) -> Geometry:
    """The geometry of a linear layer that is applied to `rows` vectors an image."""
    macs = rows * layer.in_features * layer.out_features
    return Geometry(
        fan_out_P=torch.tensor([layer.out_features]),
        neurons_in=rows * layer.in_features,
        outputs=rows * layer.out_features,
        macs=macs,
        macs_formula=macs,
    )


def geometry(layer: nn.Conv2d | nn.Linear, input_shape: tuple[int, ...]) -> Geometry:
    """The geometry of a layer for an input of shape [B, C, H, W] or [B, ..., features]."""
    if isinstance(layer, nn.Conv2d):
        return conv_geometry(layer, input_shape[-2], input_shape[-1])
    return linear_geometry(layer, prod(input_shape[1:-1]))
