"""Small students of digits, trained for real, with their graphs and what they do in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.data.base import Dataset, load_dataset
from tser_cli.data.transforms import normalise
from tser_cli.export.graph import Facts, Graph, trace
from tser_cli.export.verify import Recording, record
from tser_cli.models.base import Build, Classifier
from tser_cli.models.integers import quantise, round_weights_
from tser_cli.models.neurons import activation_factory
from tser_cli.models.resnet import BasicBlock, Layout, ResNet
from tser_cli.models.vgg import POOL, Vgg
from tser_cli.settings.config import DataConfig, NeuronConfig

SHAPE = (1, 8, 8)
STEPS = 4


@dataclass(frozen=True)
class Student:
    """A network with its graph and its own run over 16 test images."""

    model: Classifier
    graph: Graph
    images_NCHW: Tensor
    truth: Recording


def build_small(kind: str, neuron: NeuronConfig | None) -> Classifier:
    """A residual, SEW or VGG network of a few thousand weights."""
    build = Build(*SHAPE, 10, activation_factory(neuron), neuron is not None, stem="small")
    if kind == "vgg":
        return Vgg(build, (8, POOL, 16, POOL))
    sew = kind == "sew"
    return ResNet(build, Layout(BasicBlock, (8, 16), (2, 1), stem_width=8, sew=sew))


@pytest.fixture(scope="session")
def small() -> Callable[..., Classifier]:
    """`small("sew", NeuronConfig())`: an untrained network; None builds an ANN."""
    return build_small


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """scikit-learn's digits."""
    return load_dataset(DataConfig())


def images_of(digits: Dataset, split: Any, count: int) -> Tensor:
    images_NCHW = torch.stack([split.image(index) for index in range(count)])
    return normalise(images_NCHW, digits.spec.mean, digits.spec.std)


def train(model: Classifier, digits: Dataset, epochs: int) -> None:
    """Cross entropy at every step, with AdamW."""
    # a third of the images: enough for spikes in every layer
    images, labels = images_of(digits, digits.train, 480), digits.train.labels
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(96):
            logits_TNK = model(images[batch], STEPS)
            loss = F.cross_entropy(logits_TNK.flatten(0, 1), labels[batch].repeat(STEPS))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


@pytest.fixture(scope="session")
def make_student(digits: Dataset) -> Callable[..., Student]:
    """`make_student("sew", NeuronConfig(...))`: a student after an epoch or more of training."""

    def make(kind: str, neuron: NeuronConfig | None = None, epochs: int = 1) -> Student:
        torch.manual_seed(7)
        model = build_small(kind, neuron or NeuronConfig())
        train(model, digits, epochs)
        spec = digits.spec
        facts = Facts(kind, spec.name, spec.mean, spec.std, spec.classes, STEPS)
        graph = trace(model, SHAPE, facts)
        images_NCHW = images_of(digits, digits.test, 16)
        return Student(model, graph, images_NCHW, record(model, graph, images_NCHW))

    return make


@pytest.fixture(scope="session")
def residual(make_student: Callable[..., Student]) -> Student:
    """A residual student: the sum comes before the spike."""
    return make_student("residual", epochs=3)


@pytest.fixture(scope="session")
def sew(make_student: Callable[..., Student]) -> Student:
    """A SEW student: spikes are added."""
    return make_student("sew", epochs=3)


@pytest.fixture(scope="session")
def rounded() -> Callable[[Student, int], Student]:
    """`rounded(student, 8)`: the student with rounded weights, its graph, and what it does."""

    def make(student: Student, bits: int) -> Student:
        model = quantise(copy.deepcopy(student.model), bits)
        round_weights_(model)
        graph, images_NCHW = trace(model, SHAPE, student.graph.facts), student.images_NCHW
        return Student(model, graph, images_NCHW, record(model, graph, images_NCHW))

    return make


@pytest.fixture
def student(request: pytest.FixtureRequest) -> Student:
    """The student that a test's parameter names."""
    chosen: Student = request.getfixturevalue(request.param)
    return chosen
