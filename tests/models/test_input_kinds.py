"""What `input_kinds` says of a layer's input, seen on data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tser_cli.models.base import Classifier
from tser_cli.settings import registry

Build = Callable[..., Classifier]
SIDE = 16


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def inputs_seen(model: Classifier, images_NCHW: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    for name, layer in weighted_layers(model).items():
        layer.register_forward_hook(lambda _m, args, _out, name=name: seen.update({name: args[0]}))
    with torch.no_grad():
        model(images_NCHW, timesteps=3)
    return seen


@pytest.mark.parametrize("name", sorted(registry.MODELS))
def test_kinds_are_true_of_the_data(build_lively: Build, name: str) -> None:
    model = build_lively(name, channels=3, height=SIDE, width=SIDE)
    kinds = model.input_kinds()
    seen = inputs_seen(model, torch.randn(2, 3, SIDE, SIDE))
    assert kinds.keys() == weighted_layers(model).keys() == seen.keys()
    for layer, kind in kinds.items():
        values = set(seen[layer].unique().tolist())
        if kind == "spikes":
            assert values == {0.0, 1.0}, layer
        elif kind == "sums":
            assert all(value >= 0 and value == int(value) for value in values), layer
            assert max(values) > 1, layer
        else:
            assert kind == "real", layer


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


@pytest.mark.parametrize(
    ("name", "stem", "side"), [("resnet18", "large", 72), ("sew_resnet18", "large", 72)]
)
def test_the_max_pool_of_the_large_stem_keeps_spikes(
    build_lively: Build, name: str, stem: str, side: int
) -> None:
    model = build_lively(name, height=side, width=side, stem=stem)
    seen = inputs_seen(model, torch.randn(2, 1, side, side))
    assert model.input_kinds()["layer1.0.conv1"] == "spikes"
    assert set(seen["layer1.0.conv1"].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("name", "head", "side", "averages"),
    [
        ("resnet18", "fc", 16, False),
        ("resnet18", "fc", 17, True),
        ("vgg11", "classifier.0", 64, False),
        ("vgg11", "classifier.0", 127, True),
    ],
)
def test_the_head_after_the_medium_stem_reads_what_it_says(
    build_lively: Build, name: str, head: str, side: int, averages: bool
) -> None:
    model = build_lively(name, height=side, width=side, stem="medium")
    values = inputs_seen(model, torch.randn(2, 1, side, side))[head]
    assert model.input_kinds()[head] == ("real" if averages else "spikes")
    assert set(values.unique().tolist()) <= {0.0, 1.0} or averages


@pytest.mark.parametrize("name", [n for n, e in registry.MODELS.items() if not e.spiking_only])
def test_an_ann_is_real_throughout(build: Build, name: str) -> None:
    with torch.device("meta"):
        model = build(name, neuron=None)
    assert model.input_kinds() == dict.fromkeys(weighted_layers(model), "real")


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("vgg11", "classifier.0")])
def test_a_pool_of_one_pixel_passes_spikes(build_lively: Build, name: str, head: str) -> None:
    model = build_lively(name)
    seen = inputs_seen(model, torch.randn(2, 1, 8, 8))
    assert model.input_kinds()[head] == "spikes"
    assert set(seen[head].unique().tolist()) <= {0.0, 1.0}


def test_a_pool_of_one_pixel_passes_sums(build_lively: Build) -> None:
    model = build_lively("sew_resnet18")
    values = inputs_seen(model, torch.randn(2, 1, 8, 8))["fc"]
    assert model.input_kinds()["fc"] == "sums"
    assert bool((values == values.round()).all())
    assert values.max() > 1
