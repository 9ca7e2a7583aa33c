"""What `input_kinds` says of a layer's input, seen on data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tser_cli.models.base import Classifier
from tser_cli.settings import registry

Build = Callable[..., Classifier]


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize(
    ("name", "stem", "side", "head"),
    [
        *((name, "auto", 16, {}) for name in ("resnet19", "resnet20", "resnet50", "sew_resnet20")),
        # the max pool of the large stem keeps spikes
        ("resnet20", "large", 72, {"layer1.0.conv1": "spikes"}),
        ("sew_resnet20", "large", 72, {"layer1.0.conv1": "spikes"}),
        ("resnet18", "medium", 16, {"fc": "spikes"}),
        ("resnet18", "medium", 17, {"fc": "real"}),
        ("vgg11", "medium", 64, {"classifier.0": "spikes"}),
        ("vgg11", "medium", 127, {"classifier.0": "real"}),
        # a pool of one pixel passes spikes and sums
        ("resnet18", "auto", 8, {"fc": "spikes"}),
        ("vgg11", "auto", 8, {"classifier.0": "spikes"}),
        ("sew_resnet18", "auto", 8, {"fc": "sums"}),
    ],
)
def test_kinds_are_true_of_the_data(
    build_lively: Build, name: str, stem: str, side: int, head: dict[str, str]
) -> None:
    model = build_lively(name, channels=3, height=side, width=side, stem=stem)
    kinds, seen = model.input_kinds(), {}
    layers = weighted_layers(model)
    for path, layer in layers.items():
        layer.register_forward_hook(lambda _m, args, _out, path=path: seen.update({path: args[0]}))
    with torch.no_grad():
        model(torch.randn(2, 3, side, side), timesteps=3)
    assert kinds.keys() == layers.keys() == seen.keys()
    assert head.items() <= kinds.items()
    for path, kind in kinds.items():
        values = set(seen[path].unique().tolist())
        if kind == "spikes":
            assert values == {0.0, 1.0}, path
        elif kind == "sums":
            assert all(value >= 0 and value == int(value) for value in values), path
            assert max(values) > 1, path
        else:
            assert kind == "real", path


@pytest.mark.parametrize(
    ("name", "side", "real"),
    [
        ("resnet18", 32, {"conv1", "fc"}),
        ("resnet18", 9, {"conv1", "fc"}),
        ("resnet19", 32, {"conv1", "fc.0"}),
        ("resnet50", 224, {"conv1", "fc"}),
        ("sew_resnet34", 32, {"conv1", "fc"}),
        ("vgg11", 64, {"features.0", "classifier.0"}),
        ("vgg11", 256, {"features.0", "classifier.0"}),
        # A last map of the pool's own size: nothing is averaged, and spikes stay spikes.
        ("resnet18", 8, {"conv1"}),
        ("vgg11", 32, {"features.0"}),
        ("vgg11", 224, {"features.0"}),
    ],
)
def test_the_stem_and_what_follows_the_average_pool_are_real(
    build: Build, name: str, side: int, real: set[str]
) -> None:
    with torch.device("meta"):
        kinds = build(name, height=side, width=side).input_kinds()
    assert {layer for layer, kind in kinds.items() if kind == "real"} == real


@pytest.mark.parametrize("name", [n for n, e in registry.MODELS.items() if not e.spiking_only])
def test_an_ann_is_real_throughout(build: Build, name: str) -> None:
    with torch.device("meta"):
        model = build(name, neuron=None)
    assert model.input_kinds() == dict.fromkeys(weighted_layers(model), "real")
