"""Graphs of our networks: nodes, sums, folded norms, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tser_cli.base.errors import ExportError
from tser_cli.export import graph as graphs
from tser_cli.export.graph import Conv, Facts, Graph, Neuron, Pool, trace
from tser_cli.models.base import Classifier, build_model
from tser_cli.settings.config import NeuronConfig

SHAPE = (1, 8, 8)
FACTS = Facts("resnet20", "digits", (0.3,), (0.4,), tuple("0123456789"), 2)
Small = Callable[..., Classifier]


def graph_of(model: Classifier, shape: tuple[int, int, int] = SHAPE) -> Graph:
    return trace(model, shape, FACTS)


def named(name: str, **changes: Any) -> Classifier:
    sizes = {"channels": 1, "height": 8, "width": 8, "num_classes": 10, **changes}
    return build_model(name, neuron=NeuronConfig(), **sizes).eval()


def test_sums_are_several_inputs_of_a_node(small: Small) -> None:
    graph = graph_of(small("residual", NeuronConfig()))
    inputs = {node.name: node.inputs for node in graph.nodes}
    assert inputs["conv1"] == ("input",)
    assert inputs["layer1.0.act2"] == ("layer1.0.conv2", "act1")
    assert inputs["layer2.0.act2"] == ("layer2.0.conv2", "layer2.0.downsample.0")
    assert inputs["layer2.0.conv1"] == ("layer1.1.act2",)
    facts = graphs.metadata(graph)
    assert facts["mean"] == "[0.3]"
    assert facts["normalisation"] == "(pixel / 255 - mean) / std, by channel"
    assert facts["timesteps"] == "2"
    assert facts["neuron_equations"].count("h >= 1.0") == 7
    graph = graph_of(small("sew", NeuronConfig()))
    inputs = {node.name: node.inputs for node in graph.nodes}
    summed = ("layer1.1.act2", "layer1.0.act2", "act1")  # reaches every reader
    assert inputs["layer2.0.conv1"] == summed
    assert inputs["layer2.0.downsample.0"] == summed
    assert inputs["avgpool"] == ("layer2.0.act2", "layer2.0.downsample.2")


def test_sizes_are_those_of_the_network() -> None:
    graph = graph_of(named("resnet18", height=96, width=64, channels=3), (3, 96, 64))
    first, pool = graph.nodes[0], graph.nodes[2]
    assert isinstance(first, Conv)
    assert (first.stride, first.padding, first.shape) == ((2, 2), (3, 3), (64, 48, 32))
    assert isinstance(pool, Pool)
    assert (pool.largest, pool.kernel, pool.padding) == (True, (3, 3), (1, 1))
    last_pool = next(node for node in graph.nodes if node.name == "avgpool")
    assert isinstance(last_pool, Pool)
    assert (last_pool.largest, last_pool.kernel, last_pool.stride) == (False, (3, 2), (3, 2))


@pytest.mark.parametrize("name", ["resnet50", "vgg11", "sew_resnet20"])
def test_every_definition_has_a_graph(name: str) -> None:
    model = named(name)
    graph = graph_of(model)
    spiking = [module for module in model.modules() if getattr(module, "is_spiking_neuron", False)]
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(graph.neurons) == len(spiking)
    assert len(graph.weighted) == len(weighted)
    assert isinstance(graph.nodes[-1], graphs.Linear)
    known = {"input", *(node.name for node in graph.nodes)}
    assert all(known.issuperset(node.inputs) for node in graph.nodes)


def test_a_pool_that_averages_nothing_is_left_out() -> None:
    nodes = graph_of(named("resnet18")).nodes
    assert [node.name for node in nodes if isinstance(node, Pool)] == []
    assert isinstance(nodes[-2], graphs.Flatten)


def test_folding_a_norm_gives_its_outputs() -> None:
    conv, norm = nn.Conv2d(2, 3, 3, padding=1).double(), nn.BatchNorm2d(3).double()
    norm.train()(torch.randn(4, 3, 5, 5, dtype=torch.float64) * 2 + 1)
    nn.init.uniform_(norm.weight, -1.0, 1.0)
    nn.init.uniform_(norm.bias)
    norm.eval()
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    assert conv.bias is not None
    arrays = (conv.weight.detach().numpy(), conv.bias.detach().numpy())
    node = Conv("conv", ("input",), (3, 5, 5), *arrays, (1, 1), (1, 1), (1, 1), 1)
    made = graphs.folded(node, norm)
    got = nn.functional.conv2d(x, *map(torch.from_numpy, (made.weight, made.bias_O)), padding=1)
    torch.testing.assert_close(got, norm(conv(x)), rtol=0, atol=1e-12)


def test_the_equations_are_exact_and_readable() -> None:
    soft = Neuron("a", ("b",), (3,), "lif", 0.5, 1.0, 1.0, None)
    assert soft.equations == (
        "v = 0.0 before the first step; h = 0.5 * v + 1.0 * x; s = 1 where h >= 1.0, else 0; "
        "v = h - 1.0 * s"
    )
    hard = replace(soft, reset=-0.5)
    assert "h = -0.5 + 0.5 * (v - -0.5) + 1.0 * x" in hard.equations
    assert hard.equations.endswith("v = -0.5 where s = 1, else h")


def test_an_ann_is_refused(small: Small) -> None:
    with pytest.raises(ExportError, match="is an ANN"):
        graph_of(small("residual", None))


class Attention(nn.Module):
    """Self-attention between the pixels of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        y: Tensor = self.attend(tokens, tokens, tokens)[0]
        return y.transpose(1, 2).reshape(x.shape)


class Total(nn.Module):
    """Each channel added to those before it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.GroupNorm(2, 8), r"avgpool.0 \(GroupNorm\)"),
        (nn.AdaptiveAvgPool2d(3), r"avgpool.0 \(an average pool from \(4, 4\) to \(3, 3\)"),
        (nn.BatchNorm2d(16), r"avgpool.0 \(a batch norm that does not follow"),
        (nn.MaxPool2d(2, ceil_mode=True), r"avgpool.0 \(a max pool with ceil_mode"),
        (Attention(), r"the layer avgpool.0.attend \(MultiheadAttention\)"),
        (Total(), r"the layer avgpool.0.cumsum \(cumsum\)"),
    ],
)
def test_what_has_no_node_is_refused_by_name(small: Small, layer: nn.Module, said: str) -> None:
    model = small("residual", NeuronConfig())
    model.avgpool = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ExportError, match=said):
        graph_of(model.eval())


class AllAtOnce(Classifier):
    """As a plug-in's network may be: it has a forward of its own."""

    spiking = True

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        return images_NCHW.new_zeros(timesteps, len(images_NCHW), 10)


class Careless(AllAtOnce):
    def stem(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW

    def body(self, x: Tensor, timesteps: int) -> Tensor:
        found: Tensor = {"y": x}["x"]
        return found


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (AllAtOnce, r"^resnet20 computes all its time steps at once, .*stem\(\) and body\(\)"),
        (Careless, r"resnet20 can't be written as a graph of layers: KeyError: 'x' \(.*test_graph"),
    ],
)
def test_a_network_of_one_s_own_is_refused_in_words(network: type[Classifier], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        trace(network(), (1, 8, 8), FACTS)
