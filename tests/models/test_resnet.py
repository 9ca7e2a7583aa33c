"""ResNets against torchvision's, the papers, and a second forward pass step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tser_cli.models.base import Classifier, load_weights
from tser_cli.settings.config import NeuronConfig

Build = Callable[..., Classifier]


def draw(model: nn.Module) -> None:
    """Random statistics and affine weights, so that no norm is the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_an_ann_gives_torchvision_s_outputs(build: Build, name: str) -> None:
    theirs = torchvision.models.get_model(name, weights=None)
    draw(theirs)
    theirs.eval()
    images_NCHW = torch.randn(2, 3, 96, 80)
    # Untrained residual sums grow to thousands; trained logits are of the size of 1 to 10.
    theirs.fc.weight.div_(theirs(images_NCHW).abs().max() / 10)
    ours = build(name, channels=3, height=96, width=80, num_classes=1000, neuron=None).eval()
    load_weights(ours, theirs.state_dict(), "torchvision")
    expected = theirs(images_NCHW)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    assert (ours(images_NCHW) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet19", "resnet20"])
@pytest.mark.parametrize("stem", ["small", "medium", "large"])
def test_names_follow_torchvision(build: Build, name: str, stem: str) -> None:
    known = name if name in ("resnet18", "resnet50") else "resnet34"
    with torch.device("meta"):
        theirs = torchvision.models.get_model(known, weights=None).state_dict().keys()
        ours = build(name, stem=stem, neuron=None).state_dict().keys()
    if name == "resnet19":
        assert ours - theirs == {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}
    else:  # resnet20 has fewer stages
        assert ours <= theirs if name == "resnet20" else ours == theirs


@pytest.mark.parametrize("name", ["sew_resnet18", "sew_resnet20", "sew_resnet34"])
def test_sew_networks_have_the_weights_of_their_plain_form(build: Build, name: str) -> None:
    with torch.device("meta"):
        sew, plain = build(name), build(name.removeprefix("sew_"))
    assert sew.state_dict().keys() == plain.state_dict().keys()


# Weighted layers in the main path: what the number in the name counts.
@pytest.mark.parametrize(
    ("name", "layers"), [("resnet18", 18), ("resnet20", 20), ("resnet34", 34), ("resnet50", 50)]
)
def test_the_name_counts_the_layers(build: Build, name: str, layers: int) -> None:
    with torch.device("meta"):
        model = build(name)
    main_path = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in path
    ]
    assert len(main_path) == layers


def test_resnet19_is_that_of_the_snn_literature(build: Build) -> None:
    with torch.device("meta"):
        model = build("resnet19")
    widths = [model.get_submodule(f"layer{n}.0.conv1").weight.shape[0] for n in (1, 2, 3)]
    blocks = [len(list(model.get_submodule(f"layer{n}").children())) for n in (1, 2, 3)]
    assert (widths, blocks) == ([128, 256, 512], [3, 3, 2])
    assert [type(layer).__name__ for layer in model.get_submodule("fc").children()] == [
        "Linear",
        "SpikingNeuron",
        "Linear",
    ]


def test_parameters_of_resnet20_as_published(build: Build) -> None:
    # He et al., 2016, table 6: 0.27 million, there without projections on the shortcuts.
    model = build("resnet20", channels=3, height=32, width=32, neuron=None)
    without = [p.numel() for n, p in model.named_parameters() if "downsample" not in n]
    assert sum(without) == 269_722


@torch.no_grad()
def test_sew_adds_after_the_spike(build_lively: Build) -> None:
    """A block of a SEW network is spike(main) + identity, so its output passes 1."""
    model = build_lively("sew_resnet20")
    seen: dict[str, torch.Tensor] = {}
    block = model.get_submodule("layer1.0")
    block.act2.register_forward_hook(lambda _m, _i, out: seen.update(branch=out))
    block.register_forward_hook(lambda _m, args, out: seen.update(identity=args[0], out=out))
    model(torch.randn(4, 1, 8, 8), timesteps=2)
    assert torch.equal(seen["out"], seen["branch"] + seen["identity"])
    assert seen["out"].unique().tolist() == [0.0, 1.0, 2.0]


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


@pytest.mark.parametrize(
    ("name", "blocks", "changes"),
    [
        *(
            ("resnet20", (3, 3, 3), changes)
            for changes in (
                {},
                {"reset": "soft"},
                {"reset_value": -0.2},
                {"tau": 3.0, "threshold": 0.7},
                {"decay_input": True, "threshold": 0.5},
                {"name": "if", "reset": "soft"},
                {"name": "plif", "tau": 2.5},
            )
        ),
        ("resnet19", (3, 3, 2), {}),
        ("sew_resnet20", (3, 3, 3), {}),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_network_equals_its_neurons_one_by_one(
    build_lively: Build, name: str, blocks: tuple[int, ...], changes: dict[str, Any]
) -> None:
    settings = NeuronConfig(**changes)
    model = build_lively(name, neuron=settings).double()
    images_NCHW = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    cells, state, sew = Membranes(settings), model.state_dict(), name.startswith("sew_")
    steps = 5 if name == "resnet20" else 3
    logits = [one_step(state, images_NCHW, cells, blocks, sew) for _ in range(steps)]
    silent = [name for name, count in cells.spikes_seen.items() if count == 0]
    assert not silent, "a comparison of silent layers would say nothing"
    expected_TNK = torch.stack(logits)
    assert torch.allclose(model(images_NCHW, timesteps=steps), expected_TNK, atol=1e-10)
    assert not torch.allclose(expected_TNK[0], expected_TNK[-1])
