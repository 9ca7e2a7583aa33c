"""Building by name, any number of steps with one instance, state that fits or not, and features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tser_cli.base.errors import CheckpointError, ConfigError
from tser_cli.models.base import (
    Classifier,
    FeatureTap,
    firing_rates,
    load_weights,
    neuron_names,
    over_time,
    penultimate,
    stage_shapes,
)
from tser_cli.settings import registry
from tser_cli.settings.config import NeuronConfig

Build = Callable[..., Classifier]
# one of each structure: the others have more of the same blocks
KINDS = ["resnet19", "resnet20", "resnet50", "vgg11", "sew_resnet20"]
SPIKING_ONLY = [name for name, entry in registry.MODELS.items() if entry.spiking_only]


def images(count: int = 2, *shape: int) -> Tensor:
    return torch.randn(count, *(shape or (1, 8, 8)))


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_step_does_not_depend_on_those_after_it(build_lively: Build, name: str) -> None:
    model, x = build_lively(name, channels=3, height=9, num_classes=7), images(2, 3, 9, 8)
    model, x = model.double(), x.double()
    assert model.spiking
    logits_TNK = model(x, timesteps=4)
    assert logits_TNK.shape == (4, 2, 7)
    assert not torch.allclose(logits_TNK[0], logits_TNK[1])
    for steps in (1, 2):
        assert torch.allclose(logits_TNK[:steps], model(x, timesteps=steps), atol=1e-10)


@pytest.mark.parametrize("name", [*KINDS, "qkformer_tiny"])
@torch.no_grad()
def test_a_frame_is_shown_at_each_step(build_lively: Build, name: str) -> None:
    model = build_lively(name).double()
    frames_NTCHW = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64)
    logits_TNK = model(frames_NTCHW, timesteps=3)
    still = frames_NTCHW[:, :1].expand(-1, 3, -1, -1, -1)
    assert torch.allclose(model(still, timesteps=3), model(still[:, 0], timesteps=3), atol=1e-10)
    # causal: the first two frames give the first two logits, whatever comes then
    assert torch.allclose(logits_TNK[:2], model(frames_NTCHW[:, :2], timesteps=2), atol=1e-10)
    assert not torch.allclose(logits_TNK[1], model(still, timesteps=3)[1])
    with pytest.raises(ConfigError, match="samples of 3 frames were shown for 2 time steps"):
        model(frames_NTCHW, timesteps=2)


@torch.no_grad()
def test_an_ann_sees_the_mean_of_the_frames_however_many(build: Build) -> None:
    model = build(neuron=None).eval()
    counts_NTCHW = torch.randint(0, 9, (2, 6, 1, 8, 8)).float()
    assert torch.equal(model(counts_NTCHW), model(counts_NTCHW.sum(1) / 6))
    coarser = counts_NTCHW.unflatten(1, (3, 2)).sum(2)
    assert not torch.allclose(model(coarser), model(counts_NTCHW))
    model.frames = 6  # as it was trained
    assert torch.equal(model(coarser), model(counts_NTCHW))


@pytest.mark.parametrize("name", KINDS[:-1])
@torch.no_grad()
def test_an_ann_gives_one_set_of_logits(build: Build, name: str) -> None:
    model = build(name, neuron=None).eval()
    assert not model.spiking
    x = images(3)
    assert model(x).shape == (3, 10)
    assert torch.equal(model(x, timesteps=4), model(x))


@pytest.mark.parametrize("name", sorted(SPIKING_ONLY))
def test_spiking_networks_refuse_to_be_anns(build: Build, name: str) -> None:
    instead = name.removeprefix("sew_") if "sew_" in name else "a residual network or a VGG.*34"
    with pytest.raises(ConfigError, match=rf"{name} .*use {instead} as"):
        build(name, neuron=None)


def test_an_unknown_model_names_the_nearest(build: Build) -> None:
    with pytest.raises(ConfigError, match=r'unknown model "restnet34" \(did you mean "resnet34"'):
        build("restnet34")


@pytest.mark.parametrize(
    ("height", "width", "stem", "kernel"),
    [
        (64, 64, "auto", 3),
        (64, 65, "auto", 7),
        (65, 64, "auto", 7),
        (224, 224, "small", 3),
        (8, 8, "large", 7),
    ],
)
def test_the_stem_follows_the_image(
    build: Build, height: int, width: int, stem: str, kernel: int
) -> None:
    model = build(height=height, width=width, stem=stem)
    stem_convolution = model.get_submodule("conv1")
    assert isinstance(stem_convolution, nn.Conv2d)
    assert stem_convolution.kernel_size == (kernel, kernel)


@pytest.mark.parametrize("name", ["resnet20", "vgg11"])
@pytest.mark.parametrize(("stem", "sides"), [("small", (9, 20)), ("medium", (5, 10))])
@torch.no_grad()
def test_the_medium_stem_halves_the_map(
    build: Build, name: str, stem: str, sides: tuple[int, int]
) -> None:
    model = build(name, height=9, width=20, stem=stem)
    x = images(2, 1, 9, 20)
    assert model.stem(x).shape[2:] == sides
    assert model(x, timesteps=2).shape == (2, 2, 10)


@torch.no_grad()
def test_the_images_of_a_batch_do_not_mix(build_lively: Build) -> None:
    model, x = build_lively().double(), images(4).double()
    together = model(x, timesteps=3)
    assert not torch.allclose(together[:, 0], together[:, 1])
    alone = torch.cat([model(image[None], timesteps=3) for image in x], dim=1)
    assert torch.allclose(together, alone, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "if"},
        {"name": "plif"},
        {"reset": "soft"},
        {"decay_input": True, "detach_reset": True},
        {"surrogate": "atan", "surrogate_alpha": 2.0},
        {"surrogate": "rect", "surrogate_alpha": 1.0},
        {"surrogate": "piecewise_quadratic", "surrogate_alpha": 1.0},
    ],
    ids=str,
)
def test_every_neuron_trains_a_step(build: Build, changes: dict[str, Any]) -> None:
    model = build(neuron=NeuronConfig(**changes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    logits_TNK = model(images(8), timesteps=2)
    nn.functional.cross_entropy(logits_TNK.mean(0), torch.arange(8)).backward()
    optimizer.step()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert not still
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_weights_of_an_ann_fit_the_snn_of_the_same_name(build: Build) -> None:
    ann, snn = build(neuron=None), build()
    load_weights(snn, ann.state_dict(), "teacher.safetensors")
    for key, value in snn.state_dict().items():
        assert torch.equal(value, ann.state_dict()[key]), key


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"num_classes": 7}, ["fc.bias is (7,), not (10,)", "number of classes"]),
        ({"channels": 3}, ["conv1.weight is (16, 3, 3, 3), not (16, 1, 3, 3)", "input channels"]),
        ({"stem": "large"}, ["conv1.weight is (16, 1, 7, 7), not (16, 1, 3, 3)", "stem"]),
        ({"name": "resnet18"}, ["missing layer1.2.bn1.bias", "and 139 more. Check"]),
        ({"name": "vgg11"}, ["missing bn1.bias", "missing bn1.num_batches_tracked"]),
        ({"neuron": NeuronConfig(name="plif")}, ["unexpected act1.node.w"]),
    ],
    ids=["classes", "channels", "stem", "resnet18", "vgg11", "plif"],
)
def test_a_state_that_does_not_fit_names_what_differs_and_changes_nothing(
    build: Build, other: dict[str, Any], told: list[str]
) -> None:
    model, state = build(), build(**other).state_dict()
    before = model.state_dict()["conv1.weight"].clone()
    with pytest.raises(CheckpointError) as error:
        load_weights(model, state, "runs/x/model.safetensors")
    for part in ["runs/x/model.safetensors", *told]:
        assert part in str(error.value)
    assert torch.equal(model.state_dict()["conv1.weight"], before)


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


def test_a_tap_follows_the_latest_pass_keeps_its_graph_and_forgets_what_was_taken(
    build_lively: Build,
) -> None:
    model = build_lively()
    tap, x = FeatureTap(model), images(2)
    model(x, timesteps=1)
    first = tap.take()
    model(images(5), timesteps=3)
    model(x, timesteps=1)
    features = tap.take()
    assert all(torch.equal(a, b) for a, b in zip(first, features, strict=True))
    features[0].sum().backward()
    assert model.get_submodule("conv1").weight.grad is not None
    with pytest.raises(KeyError):
        tap.take()


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
        ("resnet18", {"neuron": None}, [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]),
        ("resnet20", {"stem": "large"}, [(16, 2, 2), (32, 1, 1), (64, 1, 1)]),
        ("vgg11", {}, []),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_asking_for_the_shapes_of_stages_leaves_no_trace(
    build: Build, name: str, changes: dict[str, Any], shapes: list[Any], training: bool
) -> None:
    model = build(name, **changes).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, tap = torch.get_rng_state(), FeatureTap(model)
    assert stage_shapes(model, tap, (1, 8, 8)) == shapes
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    if shapes:
        with pytest.raises(KeyError):
            tap.take()


@pytest.mark.parametrize(("name", "width"), [("resnet20", 64), ("resnet19", 256), ("vgg11", 512)])
@pytest.mark.parametrize("spiking", [True, False])
def test_penultimate_features_are_what_the_last_layer_reads(
    build_lively: Build, name: str, width: int, spiking: bool
) -> None:
    neuron = NeuronConfig() if spiking else None
    model, x = build_lively(name, neuron=neuron), images(3)
    features = penultimate(model, x, timesteps=2)
    assert features.shape == (3, width)
    # the last layer is linear: it maps the mean of what it reads to the mean of the logits
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    logits = model(x, timesteps=2)
    torch.testing.assert_close(last(features), logits.mean(0) if spiking else logits)
    assert not last._forward_pre_hooks


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
