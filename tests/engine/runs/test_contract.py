"""What a network of a plug-in must do, told before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tser_cli.base.errors import ConfigError
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.networks import check_contract, counting_of
from tser_cli.models.base import Build, Classifier, OwnNetwork, build_model
from tser_cli.settings import registry
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]


class Plain(nn.Module):
    """The least that a network can be: no base class, no stem, no input kinds."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.spiking = build.spiking
        self.first = nn.Conv2d(build.channels, 4, 3)
        self.act = build.make_activation()
        self.last = nn.Linear(4 * (build.height - 2) * (build.width - 2), build.num_classes)

    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        x = self.first(images).mul(4).repeat(timesteps, 1, 1, 1)
        logits = self.last(self.act(x, timesteps).flatten(1))
        return logits.unflatten(0, (timesteps, -1)) if self.spiking else logits


class OneStep(Plain):
    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        return super().forward(images, timesteps).mean(0)


class Swapped(Plain):
    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        return super().forward(images, timesteps).transpose(0, 1)


class Remembering(Plain):
    calls = 0

    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        self.calls += 1
        return super().forward(images, timesteps) + self.calls


class Cut(Plain):
    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        return super().forward(images, timesteps).detach()


class Failing(Plain):
    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        raise ZeroDivisionError("no such size")


class Pooling(Plain):
    """Averages before its last layer, in a way that its silent neurons do not show."""

    def __init__(self, build: Build) -> None:
        super().__init__(build)
        self.last = nn.Linear(4 * 9, build.num_classes)

    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        x = self.first(images).mul(0).repeat(timesteps, 1, 1, 1)
        pooled = nn.functional.avg_pool2d(self.act(x, timesteps), 2)
        logits = self.last(pooled.flatten(1))
        return logits.unflatten(0, (timesteps, -1)) if self.spiking else logits

    def input_kinds(self) -> dict[str, str]:
        return {"first": "real", "last": "spikes"}


class Honest(Pooling):
    def input_kinds(self) -> dict[str, str]:
        return {"first": "real", "last": "real"}


class Adding(Plain):
    """Declares sums of spikes as spikes."""

    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        x = self.first(images).repeat(timesteps, 1, 1, 1)
        logits = self.last((self.act(x, timesteps) + self.act(-x, timesteps)).flatten(1))
        return logits.unflatten(0, (timesteps, -1)) if self.spiking else logits

    def input_kinds(self) -> dict[str, str]:
        return {"first": "real", "last": "spikes"}


class Misdeclared(Plain):
    def input_kinds(self) -> dict[str, str]:
        return {"first": "real"}


class NormFirst(Classifier):
    """Names its norm behind its convolution, and computes it before."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.spiking, self.norms_follow = build.spiking, True
        self.first, self.norm = nn.Conv2d(build.channels, build.channels, 3), nn.BatchNorm2d(1)
        self.act = build.make_activation()
        self.last = nn.Linear(36, build.num_classes)

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        x = self.first(self.norm(images_NCHW)).mul(4).repeat(timesteps, 1, 1, 1)
        logits: Tensor = self.last(self.act(x, timesteps).flatten(1))
        return logits.unflatten(0, (timesteps, -1)) if self.spiking else logits


def not_a_network(build: Build) -> object:
    return 3


def broken(build: Build) -> nn.Module:
    raise ValueError("no weights")


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], str]]:
    """`add(Plain)` registers a network as a plug-in does, and returns its name."""
    before = dict(registry.MODELS)
    yield lambda network: registry.add_model("mynet")(network) and "mynet"  # type: ignore[type-var]
    registry.MODELS.clear()
    registry.MODELS.update(before)


def build(spec: DataSpec, config: Config, spiking: bool = True) -> Classifier:
    return networks.build("mynet", spec, config, spiking)


def test_a_plain_module_is_a_network(
    add: Callable[[object], str], spec: DataSpec, make_config: MakeConfig
) -> None:
    add(Plain)
    images = torch.rand(5, 1, 8, 8)
    student = build(spec, make_config({"model.timesteps": 4}))
    assert student(images, 4).shape == (4, 5, 3)
    assert build(spec, make_config(), spiking=False)(images).shape == (5, 3)
    # what feeds its layers is found from the data
    with torch.inference_mode(), counting_of(student.eval(), 4) as counter:
        student(images, 4)
    kinds = {layer.layer.name: layer.layer.input_kind for layer in counter.counts().layers}
    assert kinds == {"module.first": "real", "module.last": "spikes"}
    assert not student.steps_alone


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (OneStep, r"2 images of 1 x 8 x 8 for 4 time steps.*gave \(2, 3\); it must return .*TN?"),
        (Swapped, r"logits of shape \(2, 4, 3\) for 4 time steps of 2 images"),
        (Remembering, "returns other logits the second time: reset its neurons"),
        (Cut, "has no gradient: nothing of it can be trained"),
        (Failing, r"fails: ZeroDivisionError: no such size \(.*test_contract\.py, line"),
        (Misdeclared, "last"),
        (Pooling, "at random, layer module.last is declared to be fed with spikes, but meets"),
        (Adding, "layer module.last is declared to be fed with spikes, but meets values other"),
        (NormFirst, "gives other logits once its norms are folded: norms_follow = True does not"),
        (not_a_network, "network mynet is a int, not an nn.Module"),
        (broken, "network mynet can't be built: ValueError: no weights"),
    ],
)
def test_what_breaks_the_contract(
    add: Callable[[object], str],
    spec: DataSpec,
    make_config: MakeConfig,
    network: object,
    message: str,
) -> None:
    add(network)
    with pytest.raises(ConfigError, match=message) as refused:
        build(spec, make_config({"model.timesteps": 4}))
    assert "\n" not in str(refused.value)


def test_what_an_average_makes_may_be_declared_as_real(
    add: Callable[[object], str], spec: DataSpec, make_config: MakeConfig
) -> None:
    add(Honest)
    assert build(spec, make_config({"model.timesteps": 4})).input_kinds()["module.last"] == "real"


def test_other_classes_than_the_data_set_s(spec: DataSpec) -> None:
    model = build_model("resnet20", channels=1, height=8, width=8, num_classes=5)
    with pytest.raises(ConfigError, match=r"returns logits \(2, 5\); they must be \[N, K\]"):
        check_contract("resnet20", model, spec, 1)


def test_ours_keep_it_and_stay_as_they_are(spec: DataSpec, make_config: MakeConfig) -> None:
    model = networks.build("resnet20", spec, make_config(), spiking=True)
    before, drawn = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    check_contract("resnet20", model, spec, 2)
    assert model.training
    assert model.steps_alone
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_declared_kinds_are_those_of_the_module() -> None:
    network = Misdeclared(Build(1, 8, 8, 3, nn.Identity, False, "small"))
    assert OwnNetwork(network, False).input_kinds() == {"module.first": "real"}
