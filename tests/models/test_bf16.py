"""What a student keeps in fp32 where it computes in bf16 on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tser_cli.models.base import Classifier
from tser_cli.models.neurons import SpikingNeuron

Build = Callable[..., Classifier]


@contextmanager
def seen(
    model: nn.Module, kind: type[nn.Module]
) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """Note (module, input, output) of every layer of `kind`."""
    found: list[tuple[nn.Module, Tensor, Tensor]] = []
    layers = [module for module in model.modules() if isinstance(module, kind)]
    hooks = [
        layer.register_forward_hook(lambda of, args, out: found.append((of, args[0], out)))
        for layer in layers
    ]
    yield found
    for hook in hooks:
        hook.remove()


def test_spikes_are_zeros_and_ones_in_bf16(build_lively: Build) -> None:
    model = build_lively("resnet20").train()
    with seen(model, SpikingNeuron) as found, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 1, 8, 8), timesteps=3)
    assert len(found) > 15
    for _, _, spikes in found:
        assert spikes.dtype == torch.bfloat16
        assert ((spikes == 0) | (spikes == 1)).all()
    assert any(0 < spikes.mean() < 1 for _, _, spikes in found)


def test_norms_keep_statistics_in_fp32(build_lively: Build) -> None:
    model = build_lively("resnet20").train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0  # the running mean is then the batch's
    with seen(model, nn.BatchNorm2d) as found, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 1, 8, 8), timesteps=3)
    assert len(found) > 15
    for norm, x_NCHW, _ in found:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
        assert x_NCHW.dtype == torch.bfloat16
        assert norm.running_mean.dtype == torch.float32
        mean_C = x_NCHW.double().mean((0, 2, 3))
        torch.testing.assert_close(norm.running_mean.double(), mean_C, rtol=1e-4, atol=1e-5)
