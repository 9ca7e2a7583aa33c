"""Seeing every convolution, linear layer and matrix product of a network while it runs.

Functions of torch are watched, not modules, so that functional calls, products of attention and
layers of the user's own are seen as they are. What compiled or scripted code does inside is not:
`Unclaimed` finds it, one level below, where every operation of torch passes.

Trial runs on a few images: which operations a network makes, in which order, on what shapes.

The facts and the counts of one call of a layer or matrix product, wherever its steps are.

Operations without those on weights of zero, as NeuroBench counts them.

What layers of neurons do while a network is counted: updates, spikes, and who never fires.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tser_cli.base.errors import TserError
from tser_cli.energy.any_network.layouts import Axes, Presentation, fresh_copy, try_out
from tser_cli.energy.any_network.neurons import neuron_class, neuron_layers
from tser_cli.energy.any_network.products import PRODUCTS, Product, dense, tally_product
from tser_cli.energy.counts import (
    CONV,
    LINEAR,
    MATMUL,
    REAL,
    SIGNED,
    SPIKES,
    SUMS,
    Entry,
    NeuronCounts,
    Record,
)
from tser_cli.energy.geometry import (
    ConvShape,
    Geometry,
    shape_geometry,
    vectors_geometry,
    zeros_added,
)
from tser_cli.energy.tally import TOO_LARGE, fault, fault_message, find_kind, magnitude, tally

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


NEURON = "neuron"
MATRIX_OPERATIONS = {
    *("convolution", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear"),
    *("_convolution", "mkldnn_convolution", "mkldnn_linear", "cudnn_convolution", "conv2d"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_native_multi_head_attention", "lstm", "gru", "_thnn_fused_lstm_cell", "bilinear"),
    *("_trilinear", "matmul", "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "vdot", "ger"),
}
FREE = {
    *("clone", "copy", "_to_copy", "cat", "stack", "index_select", "index", "repeat", "fill"),
    *("empty", "empty_like", "zeros", "zeros_like", "ones", "ones_like", "new_zeros", "full_like"),
    *("new_empty", "empty_strided", "new_empty_strided", "zero", "full", "arange", "scalar_tensor"),
    *("constant_pad_nd", "gather", "scatter", "flip", "roll", "lift_fresh", "item", "detach"),
    *("_local_scalar_dense", "alias", "new_ones", "select_scatter", "slice_scatter", "new_full"),
    *("unsafe_view", "resize", "set", "as_strided", "index_put"),
}
"""Operations that move values, and compute none."""


@dataclass(frozen=True)
class Call:
    """A call of a layer, product or layer of neurons: the shapes met, and at which network call."""

    name: str
    type: str
    shapes: tuple[tuple[int, ...], ...]
    step: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Return what its calls are gathered under."""
        return self.name, self.type


@dataclass
class Trace:
    """A trial run: its calls in order, what it gave, and the FLOP of what is not counted.

    `uncounted`: FLOP by operation, outside of neurons; `in_neurons`: those inside them. `neurons`:
    the class of each layer of neurons.
    """

    calls: list[Call] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    uncounted: dict[str, int] = field(default_factory=dict)
    in_neurons: int = 0
    neurons: dict[str, str] = field(default_factory=dict)


class Unclaimed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds matrix operations that no watched function made, and adds up all other FLOP."""

    def __init__(self, interceptor: Interceptor, trace: Trace, neurons: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.interceptor, self.trace, self.neurons = interceptor, trace, neurons
        self.problem = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.interceptor.running:
            return result
        name = func._schema.name.partition("::")[2]
        if name in MATRIX_OPERATIONS:
            if not self.interceptor.claimed and not self.problem:
                # Not raised here: compiled code would wrap the error up in its own.
                self.problem = (
                    f"{self._where()} can't be counted: it computes {name} in compiled or fused "
                    "code, whose inputs can't be seen; write it with Conv, Linear or matmul"
                )
        elif not self.interceptor.claimed and not func.is_view and name.strip("_") not in FREE:
            self._add(name.strip("_"), args, result)
        return result

    def _where(self) -> str:
        path = self.interceptor.path
        return f"layer {path[-1]}" if path and path[-1] else "the network"

    def _add(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        values = [*args, *(result if isinstance(result, tuple | list) else [result])]
        flop = max((v.numel() for v in values if isinstance(v, Tensor)), default=0)
        if any(where in self.neurons for where in self.interceptor.path):
            self.trace.in_neurons += flop
        else:
            self.trace.uncounted[name] = self.trace.uncounted.get(name, 0) + flop


def trace(network: nn.Module, presentation: Presentation, neurons: set[str]) -> Trace:
    """Run a copy of `network`, and note the calls of its operations and of its layers of neurons.

    Raises TserError where the network fails.
    """
    found, made = Trace(), fresh_copy(network)
    at = [0]

    def sink(operation: Operation) -> None:
        found.calls.append(Call(operation.layer, operation.type, operation.shapes(), at[0]))

    def leaving(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = first_tensor(output)
        if name in neurons and x is not None:
            found.calls.append(Call(name, NEURON, (tuple(x.shape),), at[0]))

    with intercepted(made, sink, leaving):
        found.outputs = try_out(made, presentation, lambda step: at.__setitem__(0, step))
    return found


def survey(network: nn.Module, presentation: Presentation) -> Trace:
    """Run a copy of `network`, and find its neurons and what of it is not counted.

    A module that makes spikes of values that are none is a layer of neurons, whoever wrote it.
    Raises TserError where the network fails, or computes what can't be seen.
    """
    found, made = Trace(), fresh_copy(network)
    known = {name: neuron_class(module) for name, module in neuron_layers(made)}
    inside = _descendants(made, known)
    busy: set[str] = set()

    def leaving(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        fed, x = first_tensor(args), first_tensor(output)
        if name in busy or name in known or name in inside or fed is None or x is None:
            return
        if find_kind(x) == SPIKES and find_kind(fed) not in ("", SPIKES):
            found.neurons[name] = type(module).__name__

    with (
        intercepted(made, lambda _: busy.update(interceptor.path), leaving) as interceptor,
        Unclaimed(interceptor, found, set(known)) as unclaimed,
    ):
        found.outputs = try_out(made, presentation)
    if unclaimed.problem:
        raise TserError(unclaimed.problem)
    nested = _descendants(made, found.neurons)
    own = {name: kind for name, kind in found.neurons.items() if name not in nested | busy}
    found.neurons = {**known, **own}
    return found


def _descendants(network: nn.Module, names: Iterable[str]) -> set[str]:
    """Return the modules inside those of these names."""
    return {
        f"{name}.{child}"
        for name in names
        for child, _ in network.get_submodule(name).named_modules()
        if child
    }


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor of an output or of arguments, None without one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((x for x in map(first_tensor, value) if x is not None), None)
    return None


FindKind = Callable[[int, Tensor], str]
OperandAxes = tuple[Axes | None, ...]


@dataclass(frozen=True)
class Batch:
    """The batch that a call belongs to: its number, its size, and the call's place in time."""

    number: int
    images: int
    timesteps: int
    step: int | None
    detailed: bool


def count_layer(
    record: Record, met: Operation, axes: Axes, batch: Batch, find: FindKind
) -> tuple[Entry, str]:
    """Count a convolution or linear layer; the call, and what it was fed with ("" for zeros)."""
    assert met.x is not None and met.weight is not None
    rows = axes.rows(met.x.detach(), batch.timesteps)
    x, geometry = as_map(rows, met, axes.inner)
    kind = find(0, x)
    x = magnitude(x, kind)
    if not record.macs:
        _describe(record, met, geometry, axes.inner)
    as_kind = kind if kind in (SUMS, REAL) else SPIKES
    counted = tally(x, as_kind, geometry.fan_out_P.to(x.device))
    if kind == SUMS and int(fault(x, SUMS)) == TOO_LARGE:
        raise TserError(fault_message(record.name, SUMS, TOO_LARGE))
    shape = (axes.steps(tuple(met.x.shape), batch.timesteps), batch.images, -1)
    entry = Entry(batch.number, counted.view(3, *shape).sum(-1), batch.step, kind in ("", SPIKES))
    if batch.detailed:
        _add_details(entry, x, kind, effective_operations(x, met, counted, kind, geometry), shape)
    return entry, kind


def _add_details(
    entry: Entry, x: Tensor, kind: str, effective_B: Tensor, shape: tuple[int, ...]
) -> None:
    entry.effective = effective_B.view(shape).sum(-1)
    if kind == SUMS:
        total_B = x.flatten(1).sum(1, dtype=torch.float64).round().long()
        entry.total = total_B.view(shape).sum(-1)
    else:
        entry.total = entry.tally[0]


def as_map(rows: Tensor, met: Operation, inner: int) -> tuple[Tensor, Geometry]:
    """Return the rows as `tally` takes them, and the geometry of one: [B, C, P, 1] or [B,
    features].
    """
    if met.conv is not None:
        maps = rows.flatten(0, 1) if inner > 1 else rows
        x = maps if maps.dim() == 4 else maps.flatten(2).unsqueeze(-1)
        return x, shape_geometry(met.conv, tuple(maps.shape[2:]))
    assert met.weight is not None
    outputs, features = met.weight.shape
    vectors = rows.reshape(len(rows), -1)
    return vectors, vectors_geometry(features, outputs, vectors.shape[1] // features)


def _describe(record: Record, met: Operation, geometry: Geometry, inner: int) -> None:
    assert met.weight is not None
    # A linear layer's rows have their inner vectors with them, a convolution's maps are apart.
    times = inner if met.conv is not None else 1
    record.neurons_in, record.outputs = geometry.neurons_in * times, geometry.outputs * times
    record.macs, record.macs_formula = geometry.macs * times, geometry.macs_formula * times
    record.weight_bytes = met.weight.element_size()
    record.bias_bytes = 0 if met.bias is None else met.bias.element_size()
    record.parameters = met.weight.numel() + (0 if met.bias is None else met.bias.numel())
    record.conv = met.conv


def count_product(
    record: Record, met: Operation, axes: OperandAxes, batch: Batch, find: FindKind
) -> tuple[Entry, str]:
    """Count a matrix product; the call, and what drives it ("" for nothing but zeros)."""
    product = met.product
    assert product is not None
    left, right = (
        REAL if part.tensor is None or part.tensor is met.weight else find(i, part.tensor)
        for i, part in enumerate(product.factors)
    )
    kinds = (left or SPIKES, right or SPIKES)
    letters = row_letters(met, axes)
    counted, operands = tally_product(product, letters, kinds)
    leading = next(found for found in axes if found)
    if not record.macs:
        _describe_product(record, met, letters, kinds, leading.inner)
    _note_operands(record, kinds)
    shape = (batch.timesteps if leading.all_steps else 1, batch.images, -1)
    entry = Entry(
        batch.number,
        counted.reshape(3, *shape).sum(-1),
        batch.step,
        SPIKES in kinds,
        operands=operands.reshape(2, *shape).sum(-1),
    )
    return entry, _driving(left, right)


def _driving(left: str, right: str) -> str:
    """Return what drives a product: sums where there are some, else spikes, real where nothing
    does.
    """
    found = {kind for kind in (left, right) if kind != REAL}
    if not found:
        return REAL
    return next((kind for kind in (SUMS, SIGNED, SPIKES) if kind in found), "")


def row_letters(met: Operation, axes: OperandAxes) -> str:
    """Return the letters of time and batch.

    Raises TserError where a product goes over the images.
    """
    assert met.product is not None
    batches, times = set(), set()
    for found, part in zip(axes, met.product.factors, strict=True):
        if found is not None:
            batches.add(part.letters[found.batch])
            times |= {part.letters[found.time]} if found.time is not None else set()
    if len(batches) > 1 or len(times) > 1 or not batches | times <= set(met.product.output):
        raise TserError(
            f"{met.layer} multiplies images or time steps with each other, so that its operations "
            "can't be told apart by image"
        )
    return "".join(times) + "".join(batches)


def _describe_product(
    record: Record, met: Operation, letters: str, kinds: tuple[str, str], inner: int
) -> None:
    product = met.product
    assert product is not None
    sizes, macs = product.sizes(), dense(product, letters) * inner
    per_row = [
        prod(size for c, size in zip(part.letters, part.sizes, strict=True) if c not in letters)
        * inner
        for part in product.factors
    ]
    driving = [size for size, kind in zip(per_row, kinds, strict=True) if kind != REAL]
    record.neurons_in = sum(driving or per_row)
    record.outputs = prod(sizes[c] for c in product.output if c not in letters) * inner
    record.macs = record.macs_formula = macs
    if met.weight is not None:
        record.weight_bytes, record.parameters = met.weight.element_size(), met.weight.numel()
    record.operand_sizes = (per_row[0], per_row[1])
    record.product = _heads(product, letters, inner)


def _heads(product: Product, letters: str, inner: int) -> tuple[int, int, int, int]:
    """H, M, K, P: how often [M, K] x [K, P] is computed for one image and step."""
    sizes = {c: size for c, size in product.sizes().items() if c not in letters}
    left, right, out = (
        set(n) for n in (product.left.letters, product.right.letters, product.output)
    )
    groups = (left & right & out, left - right, (left & right) - out, right - left)
    heads, rows, inside, columns = (prod(sizes.get(c, 1) for c in group) for group in groups)
    return heads * inner, rows, inside, columns


def _note_operands(record: Record, kinds: tuple[str, str]) -> None:
    if record.operand_kinds is None:
        record.operand_kinds = kinds
    else:
        rank = (SPIKES, SIGNED, SUMS, REAL)
        pairs = zip(record.operand_kinds, kinds, strict=True)
        worst = [max(pair, key=rank.index) for pair in pairs]
        record.operand_kinds = (worst[0], worst[1])


def effective_operations(
    x: Tensor, met: Operation, counted: Tensor, kind: str, geometry: Geometry
) -> Tensor:
    """Non-zero inputs x the non-zero weights that read them, of each row of `x`, int64 [B].

    `x`: [B, C, P, 1], [B, C, H, W] or [B, rows * features], as `calls.as_map` makes it. `counted`:
    what `tally` said of it.
    """
    assert met.weight is not None, "a layer has weights"
    used = met.weight.detach().ne(0)
    if bool(used.all()):
        if kind != REAL:
            return counted[1]
        return tally(x.ne(0).float(), SPIKES, geometry.fan_out_P.to(x.device))[1]
    fired = x.ne(0)
    if met.conv is None:
        readers = used.sum(0)
        return (fired.reshape(len(x), -1, len(readers)) * readers).sum((1, 2))
    return _convolved(fired, used, met.conv, geometry)


def _convolved(fired: Tensor, used: Tensor, conv: ConvShape, geometry: Geometry) -> Tensor:
    # Each input channel alone, with the number of its non-zero weights at each tap as its kernel.
    if conv.transposed:
        per_tap = used.sum(1)
    else:
        group = conv.out_channels // conv.groups
        per_tap = used.reshape(conv.groups, group, *used.shape[1:]).sum(1).flatten(0, 1)
    kernel = per_tap.double().unsqueeze(1)
    sizes = geometry.sizes
    maps = fired.reshape(*fired.shape[:2], *sizes).double()
    if conv.transposed:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(sizes) - 1]
        padding = tuple(before for before, _ in conv.padding)
        out = function(
            maps,
            kernel,
            None,
            conv.stride,
            padding,
            conv.output_padding,
            len(kernel),
            conv.dilation,
        )
    else:
        zeros = [edge for pair in reversed(conv.padding) for edge in pair]
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(sizes) - 1]
        out = convolve(F.pad(maps, zeros), kernel, None, conv.stride, 0, conv.dilation, len(kernel))
    return out.flatten(1).sum(1).round().to(torch.int64)


@dataclass
class Firing:
    """A layer of neurons: its calls, [steps, images] spikes each, and which neurons fired.

    `ever` and `always`: of each neuron, whether it fired at all, and whether at every step of
    every image. Only updates are counted unless a batch is `detailed`.
    """

    name: str
    type: str
    updates: int = 0
    sent: list[tuple[Batch, Tensor]] = field(default_factory=list)
    ever: Tensor | None = None
    always: Tensor | None = None

    def add(self, output: Tensor, axes: Axes, batch: Batch) -> None:
        """Count one call, whose output may hold all steps or one."""
        steps = axes.steps(tuple(output.shape), batch.timesteps)
        self.updates = output.numel() // (steps * batch.images)
        if not batch.detailed:
            return
        rows = axes.rows(output.detach(), batch.timesteps)
        fired = rows.reshape(steps, batch.images, -1).ne(0).float()
        self.sent.append((batch, fired.sum(-1).long()))
        ever, always = fired.amax((0, 1)).bool(), fired.amin((0, 1)).bool()
        self.ever = ever if self.ever is None else self.ever | ever
        self.always = always if self.always is None else self.always & always

    def counts(self, timesteps: int, images: list[int]) -> NeuronCounts:
        """Return the spikes of all batches, [T, I], and the neurons that never or always fired."""
        if not self.sent:
            return NeuronCounts(self.name, self.type, self.updates)
        parts = [torch.zeros(timesteps, count, dtype=torch.int64) for count in images]
        for batch, fired in self.sent:
            start = batch.step or 0
            parts[batch.number][start : start + len(fired)] += fired.cpu()
        return NeuronCounts(
            name=self.name,
            type=self.type,
            updates=self.updates,
            spikes_TI=torch.cat(parts, dim=1).numpy(),
            silent=None if self.ever is None else int((~self.ever).sum()),
            always=None if self.always is None else int(self.always.sum()),
        )
