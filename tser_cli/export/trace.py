"""From one of our networks to a `Graph`: one time step is traced with torch.fx, norms are folded.

What is not a convolution, a norm behind it, a linear layer, a pool, an addition or a spiking neuron
is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from tser_cli.errors import ExportError
from tser_cli.export.graph import (
    INPUT,
    Array,
    Conv,
    Facts,
    Flatten,
    Graph,
    Linear,
    Neuron,
    Node,
    Pair,
    Pool,
    Quantised,
)
from tser_cli.models import Classifier
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.models.quantised import QuantisedConv2d, QuantisedLinear, integers_of, scale_of
from tser_cli.plugins import last_line

PASSED_OVER = (nn.Identity, nn.Dropout)
ADDITIONS = (operator.add, torch.add)


class _OneStep(nn.Module):
    """A time step of `model`: images -> logits."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.model.body(self.model.stem(images_NCHW), 1)


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
        known = isinstance(m, SpikingNeuron | nn.Conv2d | nn.Linear)
        return known or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Notes the shape of every output, without the batch."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape[1:])
        return result


def trace(model: Classifier, image_shape: tuple[int, int, int], facts: Facts) -> Graph:
    """Return the graph of an SNN in eval mode. Raises ExportError, naming a layer that has no
    node.
    """
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
    reader = _Reader(_traced(step, facts.model, image_shape))
    return Graph(image_shape, tuple(reader.read()), facts)


def _traced(step: _OneStep, name: str, image_shape: tuple[int, int, int]) -> fx.GraphModule:
    try:
        with torch.no_grad():
            traced = fx.GraphModule(step, _Tracer().trace(step))
            _check_layers(traced)
            weight = next(step.parameters())
            zeros = torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device)
            _Shapes(traced).run(zeros)
    except ExportError:
        raise
    except Exception as error:  # a network of the user's may do anything
        raise ExportError(
            f"{name} can't be written as a graph of layers: {last_line(error)}. Choose a "
            "residual, SEW or VGG student"
        ) from error
    return traced


def _check_layers(traced: fx.GraphModule) -> None:
    known = (*MAKERS, *PASSED_OVER, nn.BatchNorm2d)
    for call in traced.graph.find_nodes(op="call_module"):
        module = traced.get_submodule(str(call.target))
        if not isinstance(module, known):
            raise _unsupported(f"{_name(call)} ({type(module).__name__})")


def _name(call: fx.Node) -> str:
    return str(call.target).removeprefix("model.")


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
        name = _name(call)
        sources = self._sources[call.all_input_nodes[0]]
        if isinstance(module, PASSED_OVER) or _changes_nothing(module, call):
            return sources
        if isinstance(module, nn.BatchNorm2d):
            return self._fold(name, module, call, sources)
        make = next(make for kind, make in MAKERS.items() if isinstance(module, kind))
        self._nodes[name] = make(module, name, sources, call)
        return (name,)

    def _fold(
        self, name: str, norm: nn.BatchNorm2d, call: fx.Node, sources: tuple[str, ...]
    ) -> tuple[str, ...]:
        before = self._nodes.get(sources[0])
        alone = len(sources) == 1 and len(call.all_input_nodes[0].users) == 1
        if not alone or not isinstance(before, Conv):
            raise _unsupported(f"{name} (a batch norm that does not follow a convolution)")
        self._nodes[before.name] = folded(before, norm)
        return sources

    def _function(self, call: fx.Node) -> tuple[str, ...]:
        operands = call.all_input_nodes
        if call.target in ADDITIONS and len(operands) == 2:
            first, second = (self._sources[operand] for operand in operands)
            if set(first) & set(second):
                raise _unsupported(f"{call.name} (it adds an output to itself)")
            return first + second
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
        integers = replace(integers, scale_O=integers.scale_O * factor_O)
    weight = conv.weight * factor_O[:, None, None, None]
    return replace(conv, weight=weight, bias_O=bias_O, quantised=integers)


def values(tensor: Tensor) -> Array:
    """Return a tensor's numbers as float64, in C order whatever its memory format is."""
    return tensor.detach().cpu().double().contiguous().numpy()


def _conv(module: nn.Module, name: str, sources: tuple[str, ...], call: fx.Node) -> Node:
    assert isinstance(module, nn.Conv2d)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise _unsupported(f"{name} (padding {module.padding}, {module.padding_mode})")
    bias_O = np.zeros(module.out_channels) if module.bias is None else values(module.bias)
    sizes = (_pair(module.stride), _pair(module.padding), _pair(module.dilation))
    weight, integers = _weights(module)
    return Conv(name, sources, _shape(call), weight, bias_O, *sizes, module.groups, integers)


def _linear(module: nn.Module, name: str, sources: tuple[str, ...], call: fx.Node) -> Node:
    assert isinstance(module, nn.Linear)
    bias_O = np.zeros(module.out_features) if module.bias is None else values(module.bias)
    weight, integers = _weights(module)
    return Linear(name, sources, _shape(call), weight, bias_O, integers)


def _weights(module: nn.Conv2d | nn.Linear) -> tuple[Array, Quantised | None]:
    """Return the weights that the layer computes with, and the integers behind them if there are
    any.
    """
    if not isinstance(module, QuantisedConv2d | QuantisedLinear):
        return values(module.weight), None
    scale_O = scale_of(module.weight, module.bits)
    integers = values(integers_of(module.weight, scale_O, module.bits))
    by_channel = values(scale_O).reshape(-1, *(1 for _ in integers.shape[1:]))
    held = Quantised(integers.astype(np.int8), values(scale_O), module.bits)
    return integers * by_channel, held


def _max_pool(module: nn.Module, name: str, sources: tuple[str, ...], call: fx.Node) -> Node:
    assert isinstance(module, nn.MaxPool2d)
    sizes = (_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))
    if module.ceil_mode or _pair(module.dilation) != (1, 1):
        raise _unsupported(f"{name} (a max pool with ceil_mode or dilation)")
    return Pool(name, sources, _shape(call), True, *sizes)


def _adaptive_pool(module: nn.Module, name: str, sources: tuple[str, ...], call: fx.Node) -> Node:
    before, after = _shape(call.all_input_nodes[0])[1:], _shape(call)[1:]
    if any(old % new for old, new in zip(before, after, strict=True)):
        raise _unsupported(f"{name} (an average pool from {before} to {after}: windows differ)")
    kernel = (before[0] // after[0], before[1] // after[1])
    return Pool(name, sources, _shape(call), False, kernel, kernel, (0, 0))


def _neuron(module: nn.Module, name: str, sources: tuple[str, ...], call: fx.Node) -> Node:
    assert isinstance(module, SpikingNeuron)
    node: Any = module.node
    kind = {"IFNode": "if", "LIFNode": "lif", "ParametricLIFNode": "plif"}[type(node).__name__]
    rate = _rate(node, kind)
    gain = rate if kind != "if" and node.decay_input else 1.0
    reset = None if node.v_reset is None else float(node.v_reset)
    return Neuron(
        name, sources, _shape(call), kind, 1.0 - rate, gain, float(node.v_threshold), reset
    )


def _rate(node: Any, kind: str) -> float:
    """1 / tau; PLIF learns the logit of it (Fang et al., ICCV 2021, arXiv 2007.05785)."""
    if kind == "plif":
        return float(node.w.detach().double().sigmoid())
    return 1.0 / float(node.tau) if kind == "lif" else 0.0


MAKERS: dict[type[nn.Module], Callable[[nn.Module, str, tuple[str, ...], fx.Node], Node]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    SpikingNeuron: _neuron,
}


def _changes_nothing(module: nn.Module, call: fx.Node) -> bool:
    """Return whether it is a pool to the size that the map has already."""
    before = call.all_input_nodes[0]
    return isinstance(module, nn.AdaptiveAvgPool2d) and _shape(before) == _shape(call)


def _shape(call: fx.Node) -> tuple[int, ...]:
    """Shape of a call's output without the batch."""
    shape: tuple[int, ...] = call.meta["shape"]
    return shape


def _pair(size: Any) -> Pair:
    first, second = (size, size) if isinstance(size, int) else size
    return (int(first), int(second))


def _unsupported(layer: str) -> ExportError:
    return ExportError(
        f"the layer {layer} can't be exported: the formats hold convolutions with a norm behind "
        "them, linear layers, pools, additions and spiking neurons. Distil a residual, SEW or VGG "
        "student instead"
    )
