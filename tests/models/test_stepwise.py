"""A whole SNN against a second forward pass, one time step and one neuron update at a time.

The reference shares nothing with the package but the weights: plain functions of torch on the
state dict, and membrane potentials that it carries itself from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.models.base import Classifier
from tser_cli.settings.config import NeuronConfig

Build = Callable[..., Classifier]
State = dict[str, Tensor]


class Membranes:
    """Membrane potentials by name, updated a step at a time."""

    def __init__(self, settings: NeuronConfig) -> None:
        self.settings = settings
        self.rest = settings.reset_value if settings.reset == "hard" else 0.0
        self.potentials: dict[str, Tensor] = {}
        self.spikes_seen: dict[str, float] = {}

    def fire(self, name: str, x: Tensor) -> Tensor:
        v = self.potentials.get(name, torch.full_like(x, self.rest))
        if self.settings.name == "if":
            v = v + x
        elif self.settings.decay_input:
            v = v + (x - (v - self.rest)) / self.settings.tau
        else:
            v = v - (v - self.rest) / self.settings.tau + x
        spikes = (v >= self.settings.threshold).to(x.dtype)
        if self.settings.reset == "hard":
            v = torch.where(spikes > 0, torch.full_like(v, self.rest), v)
        else:
            v = v - self.settings.threshold * spikes
        self.potentials[name] = v
        self.spikes_seen[name] = self.spikes_seen.get(name, 0.0) + spikes.sum().item()
        return spikes


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])


def convolution(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def basic_block(state: State, at: str, x: Tensor, cells: Membranes, sew: bool) -> Tensor:
    projected = f"{at}.downsample.0.weight" in state
    stride = 2 if projected else 1
    y = norm(state, f"{at}.bn1", convolution(state, f"{at}.conv1", x, stride))
    y = cells.fire(f"{at}.1", y)
    y = norm(state, f"{at}.bn2", convolution(state, f"{at}.conv2", y))
    if projected:
        shortcut = convolution(state, f"{at}.downsample.0", x, stride)
        x = norm(state, f"{at}.downsample.1", shortcut)
        if sew:
            x = cells.fire(f"{at}.downsample", x)
    return cells.fire(f"{at}.2", y) + x if sew else cells.fire(f"{at}.2", y + x)


def one_step(
    state: State, images_NCHW: Tensor, cells: Membranes, blocks: tuple[int, ...], sew: bool
) -> Tensor:
    x = norm(state, "bn1", convolution(state, "conv1", images_NCHW))
    x = cells.fire("stem", x)
    for stage, count in enumerate(blocks, start=1):
        for number in range(count):
            x = basic_block(state, f"layer{stage}.{number}", x, cells, sew)
    features = x.mean((2, 3))
    if "fc.weight" in state:
        return features @ state["fc.weight"].T + state["fc.bias"]
    hidden = cells.fire("head", features @ state["fc.0.weight"].T + state["fc.0.bias"])
    return hidden @ state["fc.2.weight"].T + state["fc.2.bias"]


def step_by_step(
    model: Classifier,
    images_NCHW: Tensor,
    timesteps: int,
    settings: NeuronConfig,
    blocks: tuple[int, ...],
    sew: bool,
) -> Tensor:
    cells, state = Membranes(settings), model.state_dict()
    logits = [one_step(state, images_NCHW, cells, blocks, sew) for _ in range(timesteps)]
    silent = [name for name, count in cells.spikes_seen.items() if count == 0]
    assert not silent, "a comparison of silent layers would say nothing"
    return torch.stack(logits)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reset": "soft"},
        {"reset_value": -0.2},
        {"tau": 3.0, "threshold": 0.7},
        {"decay_input": True, "threshold": 0.5},
        {"name": "if", "reset": "soft"},
        {"name": "plif", "tau": 2.5},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_network_equals_its_neurons_one_by_one(
    build_lively: Build, changes: dict[str, Any]
) -> None:
    settings = NeuronConfig(**changes)
    model = build_lively("resnet20", neuron=settings).double()
    images_NCHW = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    expected_TNK = step_by_step(model, images_NCHW, 5, settings, (3, 3, 3), sew=False)
    assert torch.allclose(model(images_NCHW, timesteps=5), expected_TNK, atol=1e-10)
    assert not torch.allclose(expected_TNK[0], expected_TNK[-1])


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet18", (2, 2, 2, 2)), ("resnet19", (3, 3, 2)), ("sew_resnet18", (2, 2, 2, 2))],
)
@torch.no_grad()
def test_other_networks_equal_their_neurons_one_by_one(
    build_lively: Build, name: str, blocks: tuple[int, ...]
) -> None:
    settings = NeuronConfig()
    model = build_lively(name).double()
    images_NCHW = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    sew = name.startswith("sew_")
    expected_TNK = step_by_step(model, images_NCHW, 3, settings, blocks, sew)
    assert torch.allclose(model(images_NCHW, timesteps=3), expected_TNK, atol=1e-10)
