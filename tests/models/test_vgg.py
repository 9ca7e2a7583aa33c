"""VGGs with batch norm against torchvision's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from tser_cli.models.base import Classifier, check_fits

Build = Callable[..., Classifier]
LARGE = {"channels": 3, "height": 224, "width": 224, "num_classes": 1000, "stem": "large"}


@pytest.mark.parametrize("name", ["vgg11", "vgg16"])
def test_names_and_shapes_follow_torchvision(build: Build, name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"{name}_bn", weights=None)
        ours = build(name, neuron=None, **LARGE)
    check_fits(ours, theirs.state_dict(), "torchvision")
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@torch.no_grad()
def test_vgg11_gives_torchvision_s_outputs(build: Build) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vgg11_bn(weights=None).eval()
        ours = build("vgg11", neuron=None, **LARGE).eval()
    state = {
        key: torch.empty(value.shape).uniform_(0.5, 1.5)
        if value.dim() < 2
        else torch.empty(value.shape).uniform_(-1, 1) * (3 / value[0].numel()) ** 0.5
        for key, value in theirs.state_dict().items()
    }
    for model in (theirs, ours):
        model.load_state_dict(state, assign=True)
    images_NCHW = torch.randn(2, 3, 64, 64)  # pooled to 7 x 7 as well
    expected = theirs(images_NCHW)
    assert (ours(images_NCHW) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not torch.allclose(expected[0], expected[1], rtol=1e-3)


@pytest.mark.parametrize(("name", "layers"), [("vgg11", 8), ("vgg16", 13)])
def test_the_small_head_is_one_linear_layer(build: Build, name: str, layers: int) -> None:
    with torch.device("meta"):
        model = build(name, channels=3, height=32, width=32)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(nn.Conv2d) == layers
    assert kinds.count(nn.Linear) == 1
    assert kinds.count(nn.MaxPool2d) == 5


def test_pools_that_would_leave_nothing_are_passed_over(build: Build) -> None:
    with torch.device("meta"):
        small, large = build("vgg11"), build("vgg11", height=32, width=32)
    kinds = [type(module) for module in small.modules()]
    assert (kinds.count(nn.MaxPool2d), kinds.count(nn.Identity)) == (3, 2)
    assert small.state_dict().keys() == large.state_dict().keys()
