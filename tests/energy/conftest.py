"""Small networks whose arithmetic is exact, a count by brute force, and a spy on inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tser_cli.models.base import Classifier, build_model
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.settings.config import NeuronConfig

Inputs = dict[str, list[Tensor]]


class SmallSew(nn.Module):
    """Stem, a strided grouped convolution, a SEW addition, and two linear layers.

    Weights and images are multiples of powers of two, so that every sum is exact and the spikes
    are the same whatever the batch, the layout or the order of additions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem_once = True
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.act1 = SpikingNeuron(NeuronConfig())
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.act2 = SpikingNeuron(NeuronConfig())
        self.conv3 = nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2))
        self.act3 = SpikingNeuron(NeuronConfig())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 8)
        self.act4 = SpikingNeuron(NeuronConfig(threshold=0.125))
        self.head = nn.Linear(8, 3, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randint(-20, 24, weight.shape) / 64)

    def input_kinds(self) -> dict[str, str]:
        """What feeds each layer."""
        return {"stem": "real", "conv2": "spikes", "conv3": "sums", "fc": "real", "head": "spikes"}

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        x = self.stem(images_NCHW.repeat(1 if self.stem_once else timesteps, 1, 1, 1))
        x = x.repeat(timesteps if self.stem_once else 1, 1, 1, 1)
        first = self.act1(x, timesteps)
        summed = first + self.act2(self.conv2(first), timesteps)
        x = self.pool(self.act3(self.conv3(summed), timesteps)).flatten(1)
        x = self.head(self.act4(self.fc(x), timesteps))
        return x.reshape(timesteps, -1, x.shape[-1])


@pytest.fixture
def small_sew() -> SmallSew:
    """The network above; its stem is computed once an image, or as `stem_once` says."""
    return SmallSew()


@pytest.fixture
def exact_images() -> Callable[[int], Tensor]:
    """Makes n images [n, 2, 7, 6] of multiples of 1/16."""
    return lambda n: torch.randint(-8, 32, (n, 2, 7, 6)) / 16


@pytest.fixture
def lively() -> Callable[..., Classifier]:
    """Builds a network by name for 8 x 8 colour images, whose every layer spikes."""

    def make(name: str, neuron: NeuronConfig | None = None, **changes: Any) -> Classifier:
        shape = {"channels": 3, "height": 8, "width": 8, **changes}
        model = build_model(name, num_classes=10, neuron=neuron or NeuronConfig(), **shape)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.uniform_(module.bias, 0.3, 0.7)
        model.train()
        with torch.no_grad():
            model(torch.randn(4, shape["channels"], shape["height"], shape["width"]), timesteps=2)
        return model.eval()

    return make


@pytest.fixture
def brute_force() -> Callable[[nn.Module, Tensor], Tensor]:
    """Accumulates of each sample: the layer itself with weights of one, in float64, summed."""

    def count(layer: nn.Module, x: Tensor) -> Tensor:
        ones = torch.ones_like(layer.weight, dtype=torch.float64)
        if isinstance(layer, nn.Linear):
            return F.linear(x.double(), ones).flatten(1).sum(1)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.conv2d(x.double(), ones, None, *geometry).sum((1, 2, 3))

    return count


@pytest.fixture
def spy() -> Callable[[nn.Module], Any]:
    """`with spy(model) as inputs`: what every convolution and linear layer is fed, in order."""

    @contextmanager
    def watch(model: nn.Module) -> Iterator[Inputs]:
        inputs: Inputs = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda _, args: inputs.setdefault(name, []).append(args[0].detach().clone())

        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        handles = [m.register_forward_pre_hook(keep(n)) for n, m in layers]
        yield inputs
        for handle in handles:
            handle.remove()

    return watch
