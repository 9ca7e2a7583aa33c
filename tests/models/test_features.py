"""What the stages of a network give, as feature methods see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tser_cli.models.base import (
    Classifier,
    FeatureTap,
    firing_rates,
    neuron_names,
    over_time,
    penultimate,
    stage_shapes,
)

Build = Callable[..., Classifier]


def test_a_tap_gives_each_stage_s_output_in_order(build_lively: Build) -> None:
    model = build_lively()
    tap, images = FeatureTap(model), torch.randn(3, 1, 8, 8)
    model(images, timesteps=2)
    features = tap.take()
    x = model.get_submodule("maxpool")(
        model.get_submodule("act1")(model.stem(images).repeat(2, 1, 1, 1), 2)
    )
    for name, found in zip(("layer1", "layer2", "layer3"), features, strict=True):
        x = model.get_submodule(name)(x, 2)
        assert torch.equal(found, x), name
    assert features[-1].sum() > 0  # it spikes: the comparison is not one of silence


def test_a_tap_keeps_the_graph_and_forgets_what_was_taken(build_lively: Build) -> None:
    model = build_lively()
    tap = FeatureTap(model)
    model(torch.randn(2, 1, 8, 8), timesteps=1)
    features = tap.take()
    features[0].sum().backward()
    assert model.get_submodule("conv1").weight.grad is not None
    with pytest.raises(KeyError):
        tap.take()


def test_a_tap_follows_the_latest_pass(build_lively: Build) -> None:
    model = build_lively()
    tap, images = FeatureTap(model), torch.randn(2, 1, 8, 8)
    model(images, timesteps=1)
    first = tap.take()
    model(torch.randn(5, 1, 8, 8), timesteps=3)
    model(images, timesteps=1)
    assert all(torch.equal(a, b) for a, b in zip(first, tap.take(), strict=True))


def test_the_mean_over_time_leaves_images_apart() -> None:
    # time is the outer part of the folded axis: steps of image 0 are rows 0 and 3
    folded = torch.arange(6.0).reshape(6, 1, 1, 1)
    assert over_time(folded, 2).flatten().tolist() == [1.5, 2.5, 3.5]
    assert over_time(folded, 1).flatten().tolist() == folded.flatten().tolist()
    assert over_time(folded, 6).flatten().tolist() == [2.5]


@pytest.mark.parametrize(
    ("name", "changes", "shapes"),
    [
        ("resnet20", {}, [(16, 8, 8), (32, 4, 4), (64, 2, 2)]),
        ("resnet18", {}, [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]),
        ("resnet34", {"neuron": None}, [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]),
        ("resnet20", {"stem": "large"}, [(16, 2, 2), (32, 1, 1), (64, 1, 1)]),
        ("vgg11", {}, []),
    ],
)
def test_shapes_of_the_stages(
    build: Build,
    name: str,
    changes: dict[str, object],
    shapes: list[tuple[int, int, int]],
) -> None:
    model = build(name, **changes)
    assert stage_shapes(model, FeatureTap(model), (1, 8, 8)) == shapes


@pytest.mark.parametrize("training", [True, False])
def test_asking_for_shapes_leaves_no_trace(build: Build, training: bool) -> None:
    model = build().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    tap = FeatureTap(model)
    stage_shapes(model, tap, (1, 8, 8))
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
    with pytest.raises(KeyError):
        tap.take()


@pytest.mark.parametrize(
    ("name", "stem", "width"),
    [("resnet20", "auto", 64), ("resnet19", "auto", 256), ("vgg11", "large", 4096)],
)
def test_penultimate_features_are_what_the_last_layer_reads(
    build_lively: Build, name: str, stem: str, width: int
) -> None:
    model = build_lively(name, stem=stem)
    images = torch.randn(3, 1, 8, 8)
    features = penultimate(model, images, timesteps=2)
    assert features.shape == (3, width)
    # the last layer is linear: it maps the mean of what it reads to the mean of the logits
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    torch.testing.assert_close(last(features), model(images, timesteps=2).mean(0))


def test_penultimate_features_of_an_ann(build: Build) -> None:
    model = build(neuron=None).eval()
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(
        model.get_submodule("fc")(penultimate(model, images, timesteps=2)), model(images)
    )
    assert not model.get_submodule("fc")._forward_pre_hooks


def test_firing_rates_are_means_over_neurons_images_and_steps(build_lively: Build) -> None:
    model = build_lively()
    names = neuron_names(model)
    tap = FeatureTap(model, names)
    model(torch.randn(4, 1, 8, 8), timesteps=3)
    spikes = tap.take()
    rates, mean = firing_rates(spikes)
    assert rates.shape == (len(names),)
    assert rates[0].item() == pytest.approx(spikes[0].sum().item() / spikes[0].numel())
    assert 0 < rates.max() <= 1
    total, neurons = sum(s.sum().item() for s in spikes), sum(s.numel() for s in spikes)
    assert mean.item() == pytest.approx(total / neurons)
    assert mean.item() != pytest.approx(rates.mean().item(), rel=0.01)
    rates.sum().backward()
    assert model.get_submodule("conv1").weight.grad.abs().sum() > 0
