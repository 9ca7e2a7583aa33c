"""A spiking network as a list of plain nodes, from which every file format is written.

One time step of a network is traced with torch.fx, and norms are folded. There is no node for an
addition: a node with several inputs reads their sum, as in NIR. Nodes stand in the order in which
they are computed. Constants are float64, so that folding a norm rounds at 2^-53; a format that
wants float32 rounds once more, when it is written. What is not a convolution, a norm behind it, a
linear layer, a pool, an addition or a spiking neuron has no node: an error names it.
"""

from __future__ import annotations

import importlib
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from tser_cli.base.errors import ExportError
from tser_cli.models.base import Classifier
from tser_cli.models.integers import QuantisedConv2d, QuantisedLinear, integers_of, scale_of
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.settings.plugins import last_line

Array: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = tuple[int, int]
INPUT = "input"


# None of these compares by value (eq=False): two arrays have no single truth value.
@dataclass(frozen=True, eq=False)
class Quantised:
    """Integer weights behind a float weight: weight = scale_O * integers_O..., exactly."""

    integers: NDArray[np.int8]
    scale_O: Array
    bits: int


@dataclass(frozen=True, eq=False)
class Node:
    """Base: a name, the names of the nodes whose sum it reads, the shape of its output (no N)."""

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """A 2-D convolution with its norm folded in: weight [O, I, H, W], bias [O]."""

    weight: Array
    bias_O: Array
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    quantised: Quantised | None = None


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """weight [O, I], bias [O]."""

    weight: Array
    bias_O: Array
    quantised: Quantised | None = None


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """Average pooling, or max pooling where `largest`; padding counts as 0 in no average."""

    largest: bool
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """[C, H, W] -> [C * H * W]."""


@dataclass(frozen=True, eq=False)
class Neuron(Node):
    """Spiking neurons; see `equations`. `reset` None is the soft reset.

    Potentials start at `rest`. `kind` is the name of the setting that made it: lif, if or plif.
    """

    kind: str
    leak: float
    gain: float
    threshold: float
    reset: float | None

    @property
    def rest(self) -> float:
        """Return where the membrane potential starts, and what it decays to."""
        return 0.0 if self.reset is None else self.reset

    @property
    def equations(self) -> str:
        """Return one time step, exactly; `v` is the membrane potential, `x` the input, `s` the
        spikes.
        """
        rest, threshold = self.rest, self.threshold
        decayed = f"{self.leak!r} * v" if not rest else f"{rest!r} + {self.leak!r} * (v - {rest!r})"
        after = f"h - {threshold!r} * s" if self.reset is None else f"{rest!r} where s = 1, else h"
        return (
            f"v = {rest!r} before the first step; h = {decayed} + {self.gain!r} * x; "
            f"s = 1 where h >= {threshold!r}, else 0; v = {after}"
        )


@dataclass(frozen=True)
class Facts:
    """What a file says of itself besides its graph.

    `mean` and `std`, one a channel, are of pixels scaled to 0..1: the graph takes
    (pixels / 255 - mean) / std. `shorter`: what an image's shorter side is scaled to before the
    central crop, 0 for 256 / 224 of the input's. `more`: further facts, such as the run's name.
    """

    model: str
    dataset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    timesteps: int
    shorter: int = 0
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Graph:
    """A folded spiking network. `input_shape` is (C, H, W); the last node gives the logits."""

    input_shape: tuple[int, int, int]
    nodes: tuple[Node, ...]
    facts: Facts

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """Return the spiking layers, first to last."""
        return tuple(node for node in self.nodes if isinstance(node, Neuron))

    @property
    def weighted(self) -> tuple[Conv | Linear, ...]:
        """Return the layers with weights, first to last."""
        return tuple(node for node in self.nodes if isinstance(node, Conv | Linear))

    @property
    def output(self) -> str:
        """Return the name of the node that gives the logits."""
        return self.nodes[-1].name


def metadata(graph: Graph) -> dict[str, str]:
    """Return the facts of `graph` as strings, for formats that keep key and value."""
    facts = graph.facts
    bits = {node.name: node.quantised.bits for node in graph.weighted if node.quantised}
    weights = "floating point, batch norms folded in"
    if bits:
        weights = (
            "8-bit integers (4-bit ones included) times a scale per output channel, batch norms "
            "folded in; the sums of a layer are exact integers, and sum times scale plus bias, the "
            "membrane potentials and the thresholds are floating point, in the units of the float "
            "network"
        )
    # strings alone: the headers of ONNX and safetensors hold nothing else
    values = {
        "model": facts.model,
        "dataset": facts.dataset,
        "input": "normalised images [N, C, H, W], the same at every time step",
        "input_shape": json.dumps(list(graph.input_shape)),
        "mean": json.dumps(list(facts.mean)),
        "std": json.dumps(list(facts.std)),
        "shorter_side": str(facts.shorter),
        "normalisation": "(pixel / 255 - mean) / std, by channel",
        "classes": json.dumps(list(facts.classes)),
        "timesteps": str(facts.timesteps),
        "output": "logits; the prediction after t steps is the argmax of the mean of steps 1..t",
        "neuron_equations": json.dumps({node.name: node.equations for node in graph.neurons}),
        "first_potentials": json.dumps({node.name: node.rest for node in graph.neurons}),
        "weights": weights,
        "weight_bits": json.dumps(bits),
    }
    return {**values, **{key: str(value) for key, value in facts.more.items()}}


def trace(model: Classifier, image_shape: tuple[int, int, int], facts: Facts) -> Graph:
    """Return the graph of an SNN in eval mode. Raises ExportError, which names what has no node."""
    if not model.spiking:
        raise ExportError(
            f"{facts.model} is an ANN: it has no spikes to hand on. Name a student's run"
        )
    if not model.steps_alone:
        raise ExportError(
            f"{facts.model} computes all its time steps at once, and a file holds one, or each by "
            "itself: give it stem() and body() in place of forward() (tser_cli.models.base)"
        )
    step = _OneStep(model).eval()
    try:
        with torch.no_grad():
            traced = fx.GraphModule(step, _Tracer().trace(step))
            # before anything runs, so that the error names the layer
            for call in traced.graph.find_nodes(op="call_module"):
                module = traced.get_submodule(str(call.target))
                if not isinstance(module, (*WITH_NODE, *PASSED_OVER, nn.BatchNorm2d)):
                    raise _unsupported(f"{_name(call)} ({type(module).__name__})")
            # run once, since torch.fx knows no shapes: pools and flattening need them
            weight = next(step.parameters())
            zeros = torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device)
            _Shapes(traced).run(zeros)
    except ExportError:
        raise
    except Exception as error:  # a network of the user's may do anything
        raise ExportError(
            f"{facts.model} can't be written as a graph of layers: {last_line(error)}. Choose a "
            "residual, SEW or VGG student"
        ) from error
    return Graph(image_shape, tuple(_Reader(traced).read()), facts)


WITH_NODE = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AdaptiveAvgPool2d, SpikingNeuron)
PASSED_OVER = (nn.Identity, nn.Dropout)
ADDITIONS = (operator.add, torch.add)


class _OneStep(nn.Module):
    """A time step of `model`: images -> logits."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.model.body(self.model.begun(images_NCHW), 1)


class _Tracer(fx.Tracer):
    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        # VGG groups its layers anew at each call; such a group has no name of its own
        if not any(m is module for module in self.root.modules()):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # fx takes torch's own layers for whole; of quantised ones, which are ours, it would trace
        # the rounding of their weights
        known = isinstance(m, SpikingNeuron | nn.Conv2d | nn.Linear)
        return known or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Notes the shape of every output, without the batch."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape[1:])
        return result


class _Reader:
    """Turns traced calls into nodes. `_sources`: the nodes whose sum each call stands for."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self._traced = traced
        self._nodes: dict[str, Node] = {}
        self._sources: dict[fx.Node, tuple[str, ...]] = {}

    def read(self) -> list[Node]:
        for call in self._traced.graph.nodes:
            if call.op == "placeholder":
                self._sources[call] = (INPUT,)
            elif call.op == "call_module":
                self._sources[call] = self._module(call)
            elif call.op != "output":
                self._sources[call] = self._function(call)
        return list(self._nodes.values())

    def _module(self, call: fx.Node) -> tuple[str, ...]:
        module = self._traced.get_submodule(str(call.target))
        name, before = _name(call), call.all_input_nodes[0]
        sources = self._sources[before]
        # a pool to the size that the map has already
        idle = isinstance(module, nn.AdaptiveAvgPool2d) and _shape(before) == _shape(call)
        if isinstance(module, PASSED_OVER) or idle:
            return sources
        if isinstance(module, nn.BatchNorm2d):
            conv = self._nodes.get(sources[0])
            # what something else reads as well must stay without the norm
            alone = len(sources) == 1 and len(before.users) == 1
            if not alone or not isinstance(conv, Conv):
                raise _unsupported(f"{name} (a batch norm that does not follow a convolution)")
            self._nodes[conv.name] = folded(conv, module)
            return sources
        self._nodes[name] = _node(module, name, sources, call)
        return (name,)

    def _function(self, call: fx.Node) -> tuple[str, ...]:
        operands = call.all_input_nodes
        if call.target in ADDITIONS and len(operands) == 2:
            # no node for it: whoever reads the sum lists both
            first, second = (self._sources[operand] for operand in operands)
            # a node reads the sum of its sources, each of them once
            if set(first) & set(second):
                raise _unsupported(f"{call.name} (it adds an output to itself)")
            return first + second
        # from axis 1 on: the batch stays
        if call.target in ("flatten", torch.flatten) and call.args[1:] == (1,):
            name = call.name
            self._nodes[name] = Flatten(name, self._sources[operands[0]], _shape(call))
            return (name,)
        raise _unsupported(f"{call.name} ({getattr(call.target, '__name__', call.target)})")


def folded(conv: Conv, norm: nn.BatchNorm2d) -> Conv:
    """gamma (W x + b - mean) / sqrt(var + eps) + beta, as a convolution."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor_O = values(norm.weight) / np.sqrt(values(norm.running_var) + norm.eps)
    bias_O = (conv.bias_O - values(norm.running_mean)) * factor_O + values(norm.bias)
    integers = conv.quantised
    if integers is not None:
        # the factor goes into the scale: integers stay those that were trained
        integers = replace(integers, scale_O=integers.scale_O * factor_O)
    weight = conv.weight * factor_O[:, None, None, None]
    return replace(conv, weight=weight, bias_O=bias_O, quantised=integers)


def values(tensor: Tensor) -> Array:
    """Return a tensor's numbers as float64, in C order whatever its memory format is."""
    return tensor.detach().cpu().double().contiguous().numpy()


def _node(module: nn.Module, name: str, sources: tuple[str, ...], call: fx.Node) -> Node:
    shape = _shape(call)
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise _unsupported(f"{name} (padding {module.padding}, {module.padding_mode})")
        sizes = (_pair(module.stride), _pair(module.padding), _pair(module.dilation))
        weight, bias_O, integers = _weights_of(module)
        return Conv(name, sources, shape, weight, bias_O, *sizes, module.groups, integers)
    if isinstance(module, nn.Linear):
        return Linear(name, sources, shape, *_weights_of(module))
    if isinstance(module, nn.MaxPool2d):
        if module.ceil_mode or _pair(module.dilation) != (1, 1):
            raise _unsupported(f"{name} (a max pool with ceil_mode or dilation)")
        sizes = (_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))
        return Pool(name, sources, shape, True, *sizes)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        before, after = _shape(call.all_input_nodes[0])[1:], shape[1:]
        if any(old % new for old, new in zip(before, after, strict=True)):
            raise _unsupported(f"{name} (an average pool from {before} to {after}: windows differ)")
        # with windows that are all alike it is a plain pool, which every format has
        kernel = (before[0] // after[0], before[1] // after[1])
        return Pool(name, sources, shape, False, kernel, kernel, (0, 0))
    assert isinstance(module, SpikingNeuron), "the layers have been checked"
    node: Any = module.node
    kind = {"IFNode": "if", "LIFNode": "lif", "ParametricLIFNode": "plif"}[type(node).__name__]
    # 1 / tau; PLIF learns the logit of it (Fang et al., ICCV 2021, arXiv 2007.05785)
    rate = 1.0 / float(node.tau) if kind == "lif" else 0.0
    if kind == "plif":
        rate = float(node.w.detach().double().sigmoid())
    gain = rate if kind != "if" and node.decay_input else 1.0
    reset = None if node.v_reset is None else float(node.v_reset)
    return Neuron(name, sources, shape, kind, 1.0 - rate, gain, float(node.v_threshold), reset)


def _weights_of(module: nn.Conv2d | nn.Linear) -> tuple[Array, Array, Quantised | None]:
    """Return the weights and biases that a layer computes with, and the integers behind them."""
    bias_O = np.zeros(len(module.weight)) if module.bias is None else values(module.bias)
    if not isinstance(module, QuantisedConv2d | QuantisedLinear):
        return values(module.weight), bias_O, None
    scale_O = scale_of(module.weight, module.bits)
    integers = values(integers_of(module.weight, scale_O, module.bits))
    by_channel = values(scale_O).reshape(-1, *(1 for _ in integers.shape[1:]))
    held = Quantised(integers.astype(np.int8), values(scale_O), module.bits)
    return integers * by_channel, bias_O, held


def _shape(call: fx.Node) -> tuple[int, ...]:
    """Return the shape of a call's output, without the batch."""
    shape: tuple[int, ...] = call.meta["shape"]
    return shape


def _pair(size: Any) -> Pair:
    first, second = (size, size) if isinstance(size, int) else size
    return (int(first), int(second))


def _name(call: fx.Node) -> str:
    return str(call.target).removeprefix("model.")


def _unsupported(layer: str) -> ExportError:
    return ExportError(
        f"the layer {layer} can't be exported: the formats hold convolutions with a norm behind "
        "them, linear layers, pools, additions and spiking neurons. Distil a residual, SEW or VGG "
        "student instead"
    )


def needs(package: str, extra: str) -> Any:
    """Return the module `package`. Raises ExportError, with the pip line, where it is missing."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"the package {error.name} is not installed, which --format {extra} needs: "
            f"{pip_line(extra)}"
        ) from error


def pip_line(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'tser-cli[{extra}]'"
