"""A spiking network as a list of plain nodes, from which every file format is written.

One time step of a network is traced with torch.fx, and norms are folded. There is no node for an
addition: a node with several inputs reads their sum, as in NIR. Nodes stand in the order in which
they are computed. Constants are float64, so that folding a norm rounds at 2^-53; a format that
wants float32 rounds once more, when it is written. What is not a convolution, a norm behind it, a
linear layer, a pool, an addition, a spiking neuron, or a product, a sum or another order of what
these give has no node: an error names it.

An axis of time, of one step, is left out wherever a network has it, so that every node gives
[N, ...].
"""

from __future__ import annotations

import importlib
import json
import operator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tser_cli.base.errors import ExportError
from tser_cli.export.tracer import BATCH, PASSED_OVER, layer_name, traced, unsupported
from tser_cli.models.base import Classifier
from tser_cli.models.integers import RoundedLayer, integers_of, scale_of
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.settings.plugins import last_line

Array: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = tuple[int, int]
Sizes: TypeAlias = tuple[int, ...]
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
    """A convolution with its norm folded in: weight [O, I, H, W], or [O, I, L]; bias [O]."""

    weight: Array
    bias_O: Array
    stride: Sizes
    padding: Sizes
    dilation: Sizes
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
class Operation(Node):
    """What attention is made of. `operands`: the names of the nodes whose sum each of them is.

    `kind`, and the numbers in `sizes`: reshape (to `shape`); transpose (the order of the axes);
    slice (an axis, from, to); matmul and mul (two operands), scale (by a number), sum and mean
    (axes). Axes count from 0, the batch.
    """

    kind: str
    operands: tuple[tuple[str, ...], ...]
    sizes: tuple[float, ...] = ()


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
    central crop, 0 for 256 / 224 of the input's. `frames`: where not "", each time step is shown
    counts of events of its own, as they are, and this says which. `more`: further facts, such as
    the run's name.
    """

    model: str
    dataset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    timesteps: int
    shorter: int = 0
    frames: str = ""
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
    shown = {
        "input": "normalised images [N, C, H, W], the same at every time step",
        "mean": json.dumps(list(facts.mean)),
        "std": json.dumps(list(facts.std)),
        "shorter_side": str(facts.shorter),
        "normalisation": "(pixel / 255 - mean) / std, by channel",
    }
    if facts.frames:
        shown = {
            "input": f"counts [N, C, H, W], others at each time step: {facts.frames}",
            "normalisation": "none: counts as they are",
        }
    # strings alone: the headers of ONNX and safetensors hold nothing else
    values = {
        "model": facts.model,
        "dataset": facts.dataset,
        **shown,
        "input_shape": json.dumps(list(graph.input_shape)),
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
    try:
        calls = traced(model, image_shape)
    except ExportError:
        raise
    except Exception as error:  # a network of the user's may do anything
        raise ExportError(
            f"{facts.model} can't be written as a graph of layers: {last_line(error)}. Choose a "
            "residual, SEW or VGG student"
        ) from error
    return Graph(image_shape, tuple(_Reader(calls).read()), facts)


ADDITIONS = (operator.add, torch.add)
PRODUCTS = {
    operator.matmul: "matmul",
    torch.matmul: "matmul",
    operator.mul: "mul",
    torch.mul: "mul",
}
SAME_ORDER = ("flatten", "reshape", "view", "unflatten", "unsqueeze", "squeeze", "contiguous")


class _Reader:
    """Turns traced calls into nodes. `_sources`: the nodes whose sum each call stands for."""

    def __init__(self, calls: fx.GraphModule) -> None:
        self._traced = calls
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
        name, before = layer_name(str(call.target)), call.all_input_nodes[0]
        sources = self._sources[before]
        # a pool to the size that the map has already
        idle = isinstance(module, nn.AdaptiveAvgPool2d) and _shape(before) == _shape(call)
        if isinstance(module, PASSED_OVER) or idle:
            return sources
        if isinstance(module, _BatchNorm):
            conv = self._nodes.get(sources[0])
            # what something else reads as well must stay without the norm
            alone = len(sources) == 1 and len(before.users) == 1
            if not alone or not isinstance(conv, Conv):
                raise unsupported(f"{name} (a batch norm that does not follow a convolution)")
            self._nodes[conv.name] = folded(conv, module)
            return sources
        self._nodes[name] = _node(module, name, sources, call)
        return (name,)

    def _function(self, call: fx.Node) -> tuple[str, ...]:
        operands = call.all_input_nodes
        target = call.target
        word = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        if target in ADDITIONS and len(operands) == 2:
            # no node for it: whoever reads the sum lists both
            first, second = (self._sources[operand] for operand in operands)
            # a node reads the sum of its sources, each of them once
            if set(first) & set(second):
                raise unsupported(f"{_name(call)} (it adds an output to itself)")
            return first + second
        if word == "chunk":
            return self._sources[operands[0]]  # its parts are taken one by one
        name, after = _name(call), _shape(call)
        if word in SAME_ORDER:
            if _shape(operands[0]) == after:
                return self._sources[operands[0]]
            if len(after) == 1:
                self._nodes[name] = Flatten(name, self._sources[operands[0]], after)
                return (name,)
        made = _operation(call, word)
        if made is None:
            raise unsupported(f"{name} ({word})")
        kind, sizes = made
        each = tuple(self._sources[operand] for operand in operands)
        # of a product with itself both are the same
        each *= 2 if kind in ("matmul", "mul") and len(each) == 1 else 1
        inputs = tuple(dict.fromkeys(source for sources in each for source in sources))
        self._nodes[name] = Operation(name, inputs, after, kind, each, sizes)
        return (name,)


def _operation(call: fx.Node, word: str) -> tuple[str, tuple[float, ...]] | None:
    """Return the kind and the numbers of an `Operation`; None where a call is none."""
    operands = call.all_input_nodes
    if call.target in PRODUCTS:
        other: list[Any] = [part for part in call.args if not isinstance(part, fx.Node)]
        if not other:
            return PRODUCTS[call.target], ()
        return ("scale", (float(other[0]),)) if isinstance(other[0], int | float) else None
    if word in SAME_ORDER:
        return "reshape", ()
    if call.target is operator.getitem:
        return _part(call)
    given: list[Any] = [*call.args[1:], *call.kwargs.values()]
    axes: list[Any] = [
        axis for part in given for axis in (part if isinstance(part, list | tuple) else [part])
    ]
    if word in ("transpose", "permute") and len(operands) == 1:
        order = list(range(_value(operands[0]).ndim))
        if word == "permute":
            order = [axis % len(order) for axis in axes]
        else:
            first, second = (int(axis) % len(order) for axis in axes)
            order[first], order[second] = order[second], order[first]
        lead = _lead(operands[0])
        fixed = order[:lead] == list(range(lead))
        return ("transpose", (0, *(axis - lead + 1 for axis in order[lead:]))) if fixed else None
    if word in ("sum", "mean") and len(operands) == 1:
        numbers = [axis for axis in axes if type(axis) is int]
        rank, lead = _value(operands[0]).ndim, _lead(operands[0])
        moved = [axis % rank - lead + 1 for axis in numbers]
        return (word, tuple(moved)) if moved and min(moved) > 0 else None
    return None


def _part(call: fx.Node) -> tuple[str, tuple[float, ...]] | None:
    """Return the slice that a part of a `chunk` is."""
    whole: Any = call.args[0]
    place: Any = call.args[1]
    if not isinstance(whole, fx.Node) or whole.target not in ("chunk", torch.chunk):
        return None
    parts, source = [_rest(part) or () for part in _value(whole)], whole.all_input_nodes[0]
    axis = next(i for i, (a, b) in enumerate(zip(parts[0], _shape(source), strict=True)) if a != b)
    begin = sum(part[axis] for part in parts[:place])
    return "slice", (axis + 1, begin, begin + parts[place][axis])


def folded(conv: Conv, norm: _BatchNorm) -> Conv:
    """gamma (W x + b - mean) / sqrt(var + eps) + beta, as a convolution."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor_O = values(norm.weight) / np.sqrt(values(norm.running_var) + norm.eps)
    bias_O = (conv.bias_O - values(norm.running_mean)) * factor_O + values(norm.bias)
    integers = conv.quantised
    if integers is not None:
        # the factor goes into the scale: integers stay those that were trained
        integers = replace(integers, scale_O=integers.scale_O * factor_O)
    weight = conv.weight * factor_O.reshape(-1, *(1 for _ in conv.weight.shape[1:]))
    return replace(conv, weight=weight, bias_O=bias_O, quantised=integers)


def values(tensor: Tensor) -> Array:
    """Return a tensor's numbers as float64, in C order whatever its memory format is."""
    return tensor.detach().cpu().double().contiguous().numpy()


def _node(module: nn.Module, name: str, sources: tuple[str, ...], call: fx.Node) -> Node:
    shape = _shape(call)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise unsupported(f"{name} (padding {module.padding}, {module.padding_mode})")
        sizes = (tuple(module.stride), tuple(module.padding), tuple(module.dilation))
        weight, bias_O, integers = _weights_of(module)
        return Conv(name, sources, shape, weight, bias_O, *sizes, module.groups, integers)
    if isinstance(module, nn.Linear):
        return Linear(name, sources, shape, *_weights_of(module))
    if isinstance(module, nn.MaxPool2d):
        if module.ceil_mode or _pair(module.dilation) != (1, 1):
            raise unsupported(f"{name} (a max pool with ceil_mode or dilation)")
        sizes = (_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))
        return Pool(name, sources, shape, True, *sizes)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        before, after = _shape(call.all_input_nodes[0])[1:], shape[1:]
        if any(old % new for old, new in zip(before, after, strict=True)):
            raise unsupported(f"{name} (an average pool from {before} to {after}: windows differ)")
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


def _weights_of(module: nn.Conv1d | nn.Conv2d | nn.Linear) -> tuple[Array, Array, Quantised | None]:
    """Return the weights and biases that a layer computes with, and the integers behind them."""
    bias_O = np.zeros(len(module.weight)) if module.bias is None else values(module.bias)
    if not isinstance(module, RoundedLayer):
        return values(module.weight), bias_O, None
    scale_O = scale_of(module.weight, module.bits)
    integers = values(integers_of(module.weight, scale_O, module.bits))
    by_channel = values(scale_O).reshape(-1, *(1 for _ in integers.shape[1:]))
    held = Quantised(integers.astype(np.int8), values(scale_O), module.bits)
    return integers * by_channel, bias_O, held


def _value(call: fx.Node) -> Any:
    return call.meta["value"]


def _lead(call: fx.Node) -> int:
    """Return how many axes come first: the batch, or a step and the batch."""
    return int(_value(call).ndim) - len(_shape(call))


def _shape(call: fx.Node) -> tuple[int, ...]:
    """Return the shape of a call's output, without a step and the batch."""
    rest = _rest(_value(call))
    if rest is None:
        raise unsupported(f"{_name(call)} (it moves images to another axis)")
    return rest


def _rest(value: Tensor) -> tuple[int, ...] | None:
    sizes = tuple(value.shape)
    lead = 2 if sizes[:2] == (1, BATCH) else 1
    return sizes[lead:] if sizes[lead - 1 : lead] == (BATCH,) else None


def _pair(size: Any) -> Pair:
    first, second = (size, size) if isinstance(size, int) else size
    return (int(first), int(second))


def _name(call: fx.Node) -> str:
    """Return a name for what is no layer: that of the layer that it is in, and its own."""
    stack = list(call.meta.get("nn_module_stack") or {})
    inside = layer_name(stack[-1]) if len(stack) > 1 else ""
    return f"{inside}.{call.name}" if inside else str(call.name)


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
