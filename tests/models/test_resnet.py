"""ResNets against torchvision's, and layers, widths and parameters against the papers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from tser_cli.models.base import Classifier, load_weights

Build = Callable[..., Classifier]


def draw(model: nn.Module) -> None:
    """Random statistics and affine weights, so that no norm is the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@torch.no_grad()
def test_an_ann_gives_torchvision_s_outputs(build: Build, name: str) -> None:
    theirs = torchvision.models.get_model(name, weights=None)
    draw(theirs)
    theirs.eval()
    images_NCHW = torch.randn(2, 3, 224, 224)
    # Untrained residual sums grow to thousands; trained logits are of the size of 1 to 10.
    theirs.fc.weight.div_(theirs(images_NCHW).abs().max() / 10)
    ours = build(name, channels=3, height=224, width=224, num_classes=1000, neuron=None).eval()
    load_weights(ours, theirs.state_dict(), "torchvision")
    expected = theirs(images_NCHW)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    assert (ours(images_NCHW) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("stem", ["small", "medium", "large"])
def test_names_follow_torchvision(build: Build, name: str, stem: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None)
        ours = build(name, stem=stem, neuron=None)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet19", "resnet20"])
def test_names_of_the_small_resnets_are_torchvision_s_too(build: Build, name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet34(weights=None).state_dict().keys()
        ours = build(name, neuron=None).state_dict().keys()
    heads = {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}
    assert ours - theirs == (heads if name == "resnet19" else set())


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
    model = build_lively("sew_resnet18")
    seen: dict[str, torch.Tensor] = {}
    block = model.get_submodule("layer1.0")
    block.act2.register_forward_hook(lambda _m, _i, out: seen.update(branch=out))
    block.register_forward_hook(lambda _m, args, out: seen.update(identity=args[0], out=out))
    model(torch.randn(4, 1, 8, 8), timesteps=2)
    assert torch.equal(seen["out"], seen["branch"] + seen["identity"])
    assert seen["out"].unique().tolist() == [0.0, 1.0, 2.0]
