"""Seeing every convolution, linear layer and matrix product of a network while it runs.

Functions of torch are watched, not modules, so that functional calls, products of attention and
layers of the user's own are seen as they are. What compiled or scripted code does inside is not:
`Unclaimed` finds it, one level below, where every operation of torch passes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tser_cli.energy.counts import CONV, LINEAR, MATMUL
from tser_cli.energy.geometry import ConvShape, zeros_added
from tser_cli.energy.products import PRODUCTS, Product

CONVOLUTIONS = {
    **{getattr(torch, f"conv{n}d"): (n, False) for n in (1, 2, 3)},
    **{getattr(torch, f"conv_transpose{n}d"): (n, True) for n in (1, 2, 3)},
}


@dataclass(frozen=True)
class Operation:
    """One call as it was met: of a layer (`x`, `weight`) or of a matrix product.

    `layer`: the layer that the weight belongs to, else the module in whose forward it happens.
    """

    layer: str
    type: str
    x: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    conv: ConvShape | None = None
    product: Product | None = None

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the sizes of what is fed: the input's, or both factors'."""
        if self.product is not None:
            return tuple(part.sizes for part in self.product.factors)
        assert self.x is not None, "a layer has an input"
        return (tuple(self.x.shape),)


Sink = Callable[[Operation], None]
Leaving = Callable[[str, nn.Module, tuple[Any, ...], Any], None]


class Interceptor(TorchFunctionMode):
    """Hands every operation of the watched network to `sink`, just before it is computed.

    `running`: whether the network is being called; what happens outside is no part of it.
    `claimed`: whether the function being computed is one that was handed on.
    """

    def __init__(self, network: nn.Module, sink: Sink) -> None:
        super().__init__()
        self.sink = sink
        self.running = False
        self.claimed = False
        self.path: list[str] = []
        self._owners = _parameter_names(network)

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.running or (func not in CONVOLUTIONS and func not in OTHERS):
            return func(*args, **kwargs)
        with torch.no_grad():
            for operation in self._operations(func, args, kwargs):
                self.sink(operation)
        self.claimed = True
        try:
            return func(*args, **kwargs)
        finally:
            self.claimed = False

    def _operations(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Operation]:
        if func in CONVOLUTIONS:
            yield self._convolution(*CONVOLUTIONS[func], *args, **kwargs)
        elif func is F.linear:
            yield self._linear(*args, **kwargs)
        elif func in PRODUCTS and (func is not torch.einsum or _multiplies(args)):
            found = PRODUCTS[func](*args, **kwargs)
            for product in [found] if isinstance(found, Product) else found:
                yield self._product(product)

    def _convolution(
        self,
        dimensions: int,
        transposed: bool,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        *rest: Any,
        **named: Any,
    ) -> Operation:
        names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
        others = {**dict(zip(names, rest, strict=False)), **named}
        tuples = partial(_each_axis, dimensions)
        kernel, dilation = tuple(weight.shape[2:]), tuples(others.get("dilation", 1))
        groups = int(others.get("groups", 1))
        zeros = padding if isinstance(padding, str) else tuples(padding)
        shape = ConvShape(
            in_channels=weight.shape[0] if transposed else weight.shape[1] * groups,
            out_channels=weight.shape[1] * groups if transposed else weight.shape[0],
            groups=groups,
            kernel=kernel,
            stride=tuples(stride),
            padding=zeros_added(zeros, kernel, dilation),
            dilation=dilation,
            transposed=transposed,
            output_padding=tuples(others.get("output_padding", 0)) if transposed else (),
        )
        return Operation(self._name(weight), CONV, input, weight, bias, shape)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operation:
        return Operation(self._name(weight), LINEAR, input, weight, bias)

    def _product(self, product: Product) -> Operation:
        for part in product.factors:
            if part.tensor is not None and id(part.tensor) in self._owners:
                name = self._owners[id(part.tensor)]
                return Operation(name, MATMUL, weight=part.tensor, product=product)
        return Operation(self._here(), MATMUL, product=product)

    def _name(self, weight: Tensor) -> str:
        return self._owners.get(id(weight)) or self._here()

    def _here(self) -> str:
        return self.path[-1] if self.path and self.path[-1] else "(network)"


OTHERS = {F.linear, *PRODUCTS}


@contextmanager
def intercepted(
    network: nn.Module, sink: Sink, leaving: Leaving | None = None
) -> Iterator[Interceptor]:
    """Watch `network` inside the `with`: `sink` gets operations, `leaving` modules and outputs.

    A copy of the network that is made meanwhile carries the hooks along; they let it alone.
    """
    interceptor = Interceptor(network, sink)
    names = {id(module): name for name, module in network.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            interceptor.path.append(names[id(module)])
            interceptor.running = True

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        # A hook that raised before `enter` leaves nothing to leave.
        if not interceptor.path or names.get(id(module)) != interceptor.path[-1]:
            return
        # What `leaving` computes is no part of the network.
        interceptor.running = False
        if leaving is not None and output is not None:
            leaving(names[id(module)], module, args, output)
        interceptor.path.pop()
        interceptor.running = bool(interceptor.path)

    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in network.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(interceptor)
        yield interceptor


def _parameter_names(network: nn.Module) -> dict[int, str]:
    """Return the layer of each parameter: what `weight` belongs to, or the parameter's own name."""
    return {id(value): name.removesuffix(".weight") for name, value in network.named_parameters()}


def _multiplies(args: tuple[Any, ...]) -> bool:
    operands = args[1:]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    return len(operands) > 1


def _each_axis(dimensions: int, value: Any) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return values * dimensions if len(values) == 1 else values
