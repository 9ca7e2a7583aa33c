"""Convolutions whose output is one pixel, as the matrix products that they are.

A 3 x 3 convolution of a map of one pixel multiplies it by the middle of its kernel; all else meets
padding. Deep layers on small images are of this kind, and hold most of a network's weights. On a
CPU a training step of such a layer takes seven times as long with a convolution as with a product
(512 channels, 64 images of one pixel, one thread).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def use_products(network: nn.Module) -> None:
    """Let the convolutions of `network` be products where they can: in training, on a CPU.

    In place; layers keep their class, parameters and hooks. What is computed in eval mode stays
    as it is. Losses change by rounding alone.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and _can_be_product(layer):
            layer._conv_forward = partial(_convolved, layer)  # type: ignore[method-assign]


def _can_be_product(layer: nn.Conv2d) -> bool:
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return plain and not isinstance(layer.padding, str)


def _convolved(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute what `layer` does to `x`, with `weight` and `bias` in place of its own."""
    trains = layer.training and torch.is_grad_enabled() and weight.requires_grad
    here = x.dim() == 4 and x.device.type == "cpu" and not torch.compiler.is_compiling()
    met = [_pixels_met(layer, x, axis) for axis in (0, 1)] if trains and here else [0, 0]
    if all(met):
        return _product(x, weight, bias, (int(layer.padding[0]), int(layer.padding[1])), met)
    result: Tensor = nn.Conv2d._conv_forward(layer, x, weight, bias)
    return result


def _pixels_met(layer: nn.Conv2d, x: Tensor, axis: int) -> int:
    """Return how many pixels along an axis the only output pixel reads; 0 where there are more."""
    size, kernel, stride = x.shape[2 + axis], layer.kernel_size[axis], layer.stride[axis]
    padding = int(layer.padding[axis])
    single = 0 <= size + 2 * padding - kernel < stride
    return max(min(size, kernel - padding), 0) if single else 0


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, first: tuple[int, int], met: list[int]
) -> Tensor:
    """[N, C, H, W] -> [N, O, 1, 1]; `first`: the first row and column of the kernel that meet a
    pixel.
    """
    (row, column), (rows, columns) = first, met
    # channels last, as the weights usually lie in memory: their gradient then needs no other order
    read = x.permute(0, 2, 3, 1)[:, :rows, :columns]
    used = weight.permute(0, 2, 3, 1)[:, row : row + rows, column : column + columns]
    return F.linear(read.flatten(1), used.flatten(1), bias)[:, :, None, None]
