"""Outputs of a network's stages, for methods that compare features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.models.base import Classifier


class FeatureTap:
    """Keep the output of each stage of `model` in its latest forward pass, or of other modules.

    Time stays folded into the batch, as the stages give it: [T * N, C, H, W].
    """

    def __init__(self, model: Classifier, names: tuple[str, ...] | None = None) -> None:
        self._kept: dict[str, Tensor] = {}
        self._names = model.stage_names() if names is None else names
        for name in self._names:
            model.get_submodule(name).register_forward_hook(self._keeper(name))

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._kept[name] = output

        return keep

    def take(self) -> tuple[Tensor, ...]:
        """Return the stages' outputs, first stage first; they are forgotten here."""
        features = tuple(self._kept[name] for name in self._names)
        self._kept.clear()
        return features


def neuron_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers of spiking neurons in `model`, as they were built."""
    return tuple(
        name for name, module in model.named_modules() if hasattr(module, "is_spiking_neuron")
    )


def firing_rates(spikes: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mean spikes per neuron per time step, of each layer and of all: -> [L] and a scalar."""
    rates_L = torch.stack([layer.float().mean() for layer in spikes])
    values_L = torch.tensor([layer.numel() for layer in spikes], device=rates_L.device)
    return rates_L, (rates_L * values_L).sum() / values_L.sum()


def over_time(features_TNCHW: Tensor, timesteps: int) -> Tensor:
    """Mean over time of time-folded features: [T * N, C, H, W] -> [N, C, H, W]."""
    return features_TNCHW.reshape(timesteps, -1, *features_TNCHW.shape[1:]).mean(0)


@torch.no_grad()
def stage_shapes(
    model: Classifier, tap: FeatureTap, image_shape: tuple[int, int, int]
) -> list[tuple[int, int, int]]:
    """(C, H, W) of each stage's output for images of `image_shape`; the mode is put back."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()(torch.zeros(1, *image_shape, device=device), 1)
    model.train(was_training)
    return [(int(f.shape[1]), int(f.shape[2]), int(f.shape[3])) for f in tap.take()]


@torch.no_grad()
def penultimate(model: Classifier, images_NCHW: Tensor, timesteps: int) -> Tensor:
    """Return what the last linear layer reads, averaged over time: [N, C, H, W] -> [N, F]."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    read: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model(images_NCHW, timesteps)
    hook.remove()
    return over_time(read[0], timesteps if model.spiking else 1)
