"""Networks with one fault each, and sound ones: what the audit says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from tests.energy import foreign
from tser_cli.energy.any_network.layouts import present
from tser_cli.energy.audit import NOTE, Audit, audit, share
from tser_cli.models.base import build_model
from tser_cli.settings.config import NeuronConfig


class Sound(nn.Module):
    """A multi-step network of spikingjelly, [T, N, C, H, W] throughout."""

    layout = "time-first"

    def __init__(self, threshold: float = 0.2) -> None:
        super().__init__()
        self.conv1 = layer.Conv2d(2, 4, 3, padding=1, step_mode="m")
        self.act1 = foreign.if_node(0.4)
        self.conv2 = layer.Conv2d(4, 4, 3, step_mode="m")
        self.act2 = neuron.IFNode(v_threshold=threshold, step_mode="m")
        self.fc = nn.Linear(64, 3)
        self.kept: Any = 0

    def middle(self, x: Tensor) -> Any:
        return self.conv2(self.act1(self.conv1(x)))

    def fire(self, x: Tensor) -> Any:
        return self.act2(x)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.fire(self.middle(x)).flatten(2))
        return y


class OverBatch(Sound):
    """QKFormer's fault: the neuron's time axis is T x N, so that images run into each other."""

    def fire(self, x: Tensor) -> Any:
        return self.act2(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class NoReset(Sound):
    """The neurons' potential is kept where nobody resets it."""

    def fire(self, x: Tensor) -> Any:
        self.kept = 0.9 * self.kept + x.sum(0)
        return self.act2(x + self.kept)


class LooksAhead(Sound):
    """A norm over the time axis: the mean of all steps is taken off each."""

    def fire(self, x: Tensor) -> Any:
        return self.act2(x - x.mean(0, keepdim=True))


class RealSpikes(Sound):
    """A pool of averages between the neurons and the layer that they should drive."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = layer.AvgPool2d(2, step_mode="m")
        self.conv3 = layer.Conv2d(4, 4, 2, step_mode="m")
        self.act3 = foreign.if_node(0.1)
        self.fc = nn.Linear(4, 3)

    def fire(self, x: Tensor) -> Any:
        return self.act3(self.conv3(self.pool(self.act2(x))))


def dead() -> nn.Module:
    """A threshold that nothing reaches."""
    return Sound(threshold=1e6)


class Saturated(Sound):
    """A threshold below everything."""

    def __init__(self) -> None:
        super().__init__()
        self.act2 = neuron.IFNode(v_threshold=-1e6, v_reset=None, step_mode="m")


class NotANumber(Sound):
    """A division of zero by zero in the second layer's input."""

    def middle(self, x: Tensor) -> Any:
        y = self.act1(self.conv1(x))
        return self.conv2(y / y.amax((2, 3, 4), keepdim=True) * 0 / 0)


def audited(net: Any, images: int = 4, timesteps: int = 3, **kw: Any) -> Audit:
    x = torch.rand(images, 2, 6, 6) * 2
    return audit(net.eval(), present(net.layout, x, timesteps, net), timesteps, **kw)


def found(result: Audit) -> set[tuple[str, str]]:
    return {(f.check, f.layer) for f in result.findings if f.severity != NOTE}


@pytest.mark.parametrize(
    ("make", "check", "layer"),
    [
        (OverBatch, "batch independence", "act2"),
        (NoReset, "reset", "act2"),
        (LooksAhead, "causality", "act2"),
        (RealSpikes, "spike-driven inputs", "conv3"),
        (dead, "firing", "act2"),
        (Saturated, "firing", "act2"),
        (NotANumber, "numbers", "conv2"),
    ],
)
def test_a_fault_is_found_and_named(make: Callable[[], nn.Module], check: str, layer: str) -> None:
    torch.manual_seed(1)
    result = audited(make())
    assert (check, layer) in found(result)
    assert not result.clean
    finding = next(f for f in result.findings if (f.check, f.layer) == (check, layer))
    assert finding.evidence.startswith((*"123456789", "its only call")), "a count, not a share"
    assert finding.advice


def test_shares_are_printed_with_what_they_are_shares_of() -> None:
    """Acts on 4 x 4 maps of 4 channels: 64 neurons in act2, all of them silent."""
    torch.manual_seed(1)
    silent = next(f for f in audited(dead()).findings if f.layer == "act2")
    assert silent.evidence == "64 of its 64 neurons never fired on 4 images (100 %)"
    always = next(f for f in audited(Saturated()).findings if f.layer == "act2")
    assert always.evidence == "64 of its 64 neurons fired at every step (100 %)"
    real = next(f for f in audited(RealSpikes()).findings if f.layer == "conv3")
    assert real.evidence == "its only call met real values"
    assert "summed, and the weights scaled by c" in real.advice


@pytest.mark.parametrize(
    ("count", "total", "words"),
    [
        (16384, 16384, "16,384 of its 16,384 x (100 %)"),
        (16383, 16384, "16,383 of its 16,384 x (over 99.9 %)"),
        (1, 2048, "1 of its 2,048 x (0.0488 %)"),
        (0, 0, "0 of its 0 x (0 %)"),
    ],
)
def test_a_share_is_never_rounded_up_to_all(count: int, total: int, words: str) -> None:
    assert share(count, total, "x") == words
    assert share(count, total) == words.replace(" its", "").replace(" x", "")


def test_a_sound_network_is_clean() -> None:
    torch.manual_seed(1)
    result = audited(Sound())
    assert result.clean
    assert [name for name, _ in result.skipped] == ["order of axes"]


def test_spikes_that_are_added_are_a_note() -> None:
    torch.manual_seed(3)
    result = audited(foreign.Sew())
    assert result.clean
    assert "block#2" in {f.layer for f in result.findings if f.check == "spike-driven inputs"}


def test_swapped_axes_are_found_by_the_labels() -> None:
    class Swapped(nn.Module):
        layout = "time-first"

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)
            self.act = foreign.if_node(0.9)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(self.fc(x))
            return y.transpose(0, 1)

    net = Swapped().eval()
    with torch.no_grad():
        net.fc.weight.copy_(torch.eye(4))
    labels = torch.arange(12) % 4
    shown = present("time-first", torch.eye(4)[labels], 3, net)
    result = audit(net, shown, 3, labels_N=labels)
    assert "order of axes" in {f.check for f in result.findings}


SMALL = {"channels": 2, "height": 8, "width": 8, "num_classes": 10}


def test_a_network_of_our_own_passes(small_sew: nn.Module, exact_images: Any) -> None:
    model: Any = small_sew.eval()
    shown = present("inside", exact_images(4), 3, model)
    result = audit(model, shown, 3, declared=model.input_kinds())
    assert found(result) == set()
    assert "causality" not in {name for name, _ in result.skipped}
    network: Any = build_model("resnet20", neuron=NeuronConfig(), **SMALL).eval()
    network.fed_counts = True
    frames_NTCHW = torch.randint(0, 3, (4, 3, 2, 8, 8)).float()
    of_frames = audit(network, present("inside", frames_NTCHW, 3, network, True), 3)
    assert "causality" not in {*found(of_frames), *(name for name, _ in of_frames.skipped)}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("ms_resnet_tiny", ["layer2.0.downsample.0", "layer3.0.downsample.0"]),
        ("sdt_tiny", []),
        ("qkformer_tiny", []),
    ],
)
def test_shortcuts_that_read_potentials_are_named(name: str, layers: list[str]) -> None:
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": 10}
    network = build_model(name, neuron=NeuronConfig(), **shape)
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.bias, 0.6, 1.4)
    shown = present("inside", torch.randn(4, 1, 8, 8), 2, network)
    found = [one for one in audit(network.eval(), shown, 2).findings if one.severity != NOTE]
    real = [one for one in found if one.what == "calls met real values"]
    assert [one.layer for one in real] == layers
    assert {one.check for one in found} <= {"spike-driven inputs", "firing"}
