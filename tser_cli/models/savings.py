"""Doing less for the same numbers: norms of equal copies, recomputed blocks, spikes in bytes.

Folded norms, for networks that are only asked for answers. And products in place of convolutions
whose output is one pixel: a 3 x 3 convolution of a map of one pixel multiplies it by the middle of
its kernel; all else meets padding. Deep layers on small images are of this kind, and hold most of a
network's weights. On a CPU a training step of such a layer takes seven times as long with a
convolution as with a product (512 channels, 64 images of one pixel, one thread).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from tser_cli.settings.config import PerformanceConfig

Network = TypeVar("Network", bound=nn.Module)
# Attributes of a tensor of small whole numbers: that it is one, and its copy of a byte a number.
WHOLE, SMALL = "tser_whole_numbers", "tser_small_copy"


@contextmanager
def as_of_copies(norm: nn.Module, copies: int) -> Iterator[None]:
    """Inside, `norm` sees a batch once and keeps the running variance of `copies` equal batches.

    Mean and biased variance of a batch of n values are those of its copies; torch's running
    variance is the unbiased one, n / (n - 1) times the biased: of the copies it is
    n copies / (n copies - 1) times. All batch statistics of the forward pass stay as they are.
    """
    if copies == 1 or not isinstance(norm, _BatchNorm) or norm.running_var is None:
        yield
        return
    before_C, values = norm.running_var.clone(), 0

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # how many values the norm averages for each channel, over all processes
        nonlocal values
        shared = isinstance(module, nn.SyncBatchNorm) and distributed.is_initialized()
        processes = distributed.get_world_size() if shared else 1
        values = args[0].numel() // len(before_C) * processes

    # a hook, since norms are torch's own: they must stay what checkpoints and SyncBatchNorm know
    hook = norm.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()
    if values < 2:
        return
    momentum = norm.momentum
    if momentum is None:  # a cumulative average
        assert norm.num_batches_tracked is not None
        momentum = 1.0 / float(norm.num_batches_tracked)
    kept_C = before_C * (1.0 - momentum)
    factor = (values - 1) * copies / (values * copies - 1)
    # .data: autograd notes the buffer, though in training backward does not read it
    norm.running_var.data.sub_(kept_C).mul_(factor).add_(kept_C)


def computed_again(block: nn.Module, x: Tensor, *timesteps: int) -> Tensor:
    """`block(x, timesteps)` that keeps only `x` for the backward pass (Chen et al., 2016).

    The second computation gives the same bits and leaves the running statistics alone.
    """

    # The first pass runs as it is; the second sees the same batch again, which would count twice.
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), statistics_kept(block)

    result: Tensor = checkpoint(
        block, x, *timesteps, use_reentrant=False, preserve_rng_state=True, context_fn=contexts
    )
    return result


@contextmanager
def statistics_kept(block: nn.Module) -> Iterator[None]:
    """Inside, the norms of `block` in training mode leave their running statistics as they are."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    # momentum 0, not copies: torch itself then leaves them as they are
    before = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, before, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count


def whole_numbers(x: Tensor) -> Tensor:
    """Return `x`, marked as spikes or sums of a few: `keeping` may keep it in a byte each."""
    if not torch.compiler.is_compiling():
        setattr(x, WHOLE, True)
    return x


def keeping(
    performance: PerformanceConfig, note: Callable[[Tensor], object] | None = None
) -> saved_tensors_hooks:
    """Inside, what backward needs of marked tensors is kept in a byte a number, if that is wanted.

    The numbers come back exactly. `note` is shown each tensor that is kept. A compiled network
    decides for itself what it keeps.
    """
    small = performance.spikes_in_bytes and performance.compile != "on"

    def pack(tensor: Tensor) -> tuple[Tensor, torch.dtype]:
        kept = tensor.detach()
        if small and getattr(tensor, WHOLE, False):
            # several layers may read, and keep, the same spikes
            if not hasattr(tensor, SMALL):
                setattr(tensor, SMALL, kept.to(torch.int8))
            kept = getattr(tensor, SMALL)
        if note is not None:
            note(kept)
        return kept, tensor.dtype

    def unpack(packed: Any) -> Tensor:
        kept, dtype = packed
        restored: Tensor = kept.to(dtype)
        return restored

    return saved_tensors_hooks(pack, unpack)


def folded(model: Network) -> Network:
    """Return a copy of an ANN in eval mode, its norms folded into the convolutions before them.

    y = gamma (W x + b - mean) / sqrt(var + eps) + beta is a convolution with other constants. Our
    definitions name a norm right after its convolution; any other norm is left as it is.
    """
    # a copy: the model itself stays as it was saved, for checkpoints and exports
    result = copy.deepcopy(model).eval()
    for parent, name, norm_name in convolutions_with_norm(result):
        convolution, norm = getattr(parent, name), getattr(parent, norm_name)
        setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
        setattr(parent, norm_name, nn.Identity())
    return result


def convolutions_with_norm(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """(parent, name of the convolution, name of the norm right behind it), for all of a network."""
    found = []
    for parent in model.modules():
        for (name, first), (norm_name, second) in pairwise(parent.named_children()):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                found.append((parent, name, norm_name))
    return found


def use_products(network: nn.Module) -> None:
    """Let the convolutions of `network` be products where they can: in training, on a CPU.

    In place; layers keep their class, parameters and hooks. What is computed in eval mode stays
    as it is. Losses change by rounding alone.
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
            continue
        if layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros":
            layer._conv_forward = partial(_convolved, layer)  # type: ignore[method-assign]


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
    """[N, C, H, W] -> [N, O, 1, 1]; `first`: the row and column of the kernel that meet pixel 0."""
    (row, column), (rows, columns) = first, met
    # channels last, as the weights usually lie in memory: their gradient then needs no other order
    read = x.permute(0, 2, 3, 1)[:, :rows, :columns]
    used = weight.permute(0, 2, 3, 1)[:, row : row + rows, column : column + columns]
    return F.linear(read.flatten(1), used.flatten(1), bias)[:, :, None, None]
