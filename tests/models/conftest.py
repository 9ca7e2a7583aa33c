"""Networks that do something: a freshly drawn SNN in eval mode would be silent in its depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tser_cli.models.base import Classifier, build_model
from tser_cli.settings.config import NeuronConfig

Build = Callable[..., Classifier]
SHAPE = {"channels": 1, "height": 8, "width": 8}


def _give_statistics(model: Classifier, shape: list[int]) -> None:
    # Norms shifted up by a half keep spikes alive down to the last layer.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, 0.3, 0.7)
    model.train()
    with torch.no_grad():
        model(torch.randn(8, *shape), timesteps=3)
    model.eval()


@pytest.fixture
def build() -> Build:
    """Builds a network by name: an SNN for 8 x 8 grey images and 10 classes if not told else."""

    def make(name: str = "resnet20", **changes: Any) -> Classifier:
        values: dict[str, Any] = {
            **SHAPE,
            "num_classes": 10,
            "neuron": NeuronConfig(),
        }
        return build_model(name, **{**values, **changes})

    return make


@pytest.fixture
def build_lively(build: Build) -> Build:
    """`build`, with norms of known statistics and in eval mode, so that every layer spikes."""

    def make(name: str = "resnet20", **changes: Any) -> Classifier:
        model = build(name, **changes)
        _give_statistics(model, [changes.get(key, size) for key, size in SHAPE.items()])
        return model

    return make
