"""Seeing every convolution, linear layer and matrix product of a network while it runs.

Functions of torch are watched, not modules, so that functional calls, products of attention and
layers of the user's own are seen as they are.

Below: trial runs on a few images, which show what a network does, in which order, on what shapes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tser_cli.base.errors import TserError
from tser_cli.energy.any_network.layouts import MisfitError, Presentation, fresh_copy, try_out
from tser_cli.energy.any_network.products import PRODUCTS, Product, ProductCall, dense
from tser_cli.energy.counter import NEURON, Key, LayerCall, Met, Shape, first_tensor
from tser_cli.energy.counts import SPIKES, ConvShape
from tser_cli.energy.neurons import different, equal, neuron_class, neuron_layers
from tser_cli.energy.tally import find_kind, stored, zeros_added

CONVOLUTIONS = {
    **{getattr(torch, f"conv{n}d"): (n, False) for n in (1, 2, 3)},
    **{getattr(torch, f"conv_transpose{n}d"): (n, True) for n in (1, 2, 3)},
}
CELLS = {torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell}
WATCHED = {*CONVOLUTIONS, F.linear, *CELLS, *PRODUCTS}
LEAVING_TORCH: set[Any] = {Tensor.numpy, Tensor.__array__}
Sink = Callable[[Met], None]
Leaving = Callable[[str, nn.Module, tuple[Any, ...], Any], None]


class Interceptor(TorchFunctionMode):
    """Hands every operation of the watched network to `sink`, just before it is computed.

    `running`: whether the network is being called; what happens outside is no part of it.
    `claimed`: whether the function being computed is one that was handed on. `left_torch`: where
    tensors were turned into arrays of NumPy, as paths.
    """

    def __init__(self, network: nn.Module, sink: Sink) -> None:
        super().__init__()
        self.sink = sink
        self.running = False
        self.claimed = False
        self.path: list[str] = []
        self._modules = dict(network.named_modules())
        self.left_torch: list[list[str]] = []
        # The layer of each parameter: what `weight` belongs to, or the parameter's own name. By
        # identity: a parameter that two modules share is one layer's.
        self._owners = {
            id(value): name.removesuffix(".weight") for name, value in network.named_parameters()
        }

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.running and func in LEAVING_TORCH:
            self.left_torch.append(list(self.path))
        if not self.running or func not in WATCHED:
            return func(*args, **kwargs)
        if any(isinstance(x, Tensor) and is_functorch_wrapped_tensor(x) for x in args):
            raise TserError(
                f"{self._here()} can't be counted: it computes inside torch.func (vmap), where "
                "images can't be distinguished; call it on the whole batch"
            )
        with torch.no_grad():
            if func in CONVOLUTIONS:
                self.sink(self._convolution(*CONVOLUTIONS[func], *args, **kwargs))
            elif func is F.linear:
                self.sink(self._layer(*args, **kwargs))
            elif func in CELLS:
                for call in self._cell(*args, **kwargs):
                    self.sink(call)
            else:
                found = PRODUCTS[func](*args, **kwargs)
                for product in [found] if isinstance(found, Product) else found:
                    self.sink(self._product(product))
        # What a watched function computes inside is counted already, whatever kernels it takes.
        self.claimed = True
        try:
            return func(*args, **kwargs)
        finally:
            self.claimed = False

    # With torch's own parameters, so that positions and names are bound as torch binds them.
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
    ) -> LayerCall:
        names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
        others = {**dict(zip(names, rest, strict=False)), **named}

        def tuples(value: Any) -> tuple[int, ...]:
            values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
            return values * dimensions if len(values) == 1 else values

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
        return self._layer(input, weight, bias, shape)

    def _layer(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        conv: ConvShape | None = None,
    ) -> LayerCall:
        name = self._owners.get(id(weight)) or self._here()
        size = stored(self._modules[self.path[-1]], weight)
        return LayerCall(name, dense(input), dense(weight), bias, size, conv)

    def _cell(
        self,
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> tuple[LayerCall, LayerCall]:
        # All gates of a cell read its input and its hidden state by one weight each.
        hidden = hx if isinstance(hx, Tensor) else hx[0]
        return self._layer(input, w_ih, b_ih), self._layer(hidden, w_hh, b_hh)

    def _product(self, product: Product) -> ProductCall:
        for part in product.factors:
            if part.tensor is not None and id(part.tensor) in self._owners:
                return ProductCall(self._owners[id(part.tensor)], product, part.tensor)
        return ProductCall(self._here(), product)

    def _here(self) -> str:
        return self.path[-1] if self.path and self.path[-1] else "(network)"


@contextmanager
def intercepted(
    network: nn.Module, sink: Sink, leaving: Leaving | None = None, everywhere: bool = True
) -> Iterator[Interceptor]:
    """Watch `network` inside the `with`: `sink` gets operations, `leaving` modules and outputs.

    `everywhere` False: not inside modules that say that they have no products, which is faster.
    """
    interceptor = Interceptor(network, sink)
    unwatched: list[Any] = []  # modules that run, and are not looked into, with what says so
    # By identity: a copy that is made meanwhile carries the hooks along, and they let it alone.
    names = {id(module): name for name, module in network.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            interceptor.path.append(names[id(module)])
            interceptor.running = True
            if not everywhere and getattr(module, "without_products", False):
                unwatched.append((module, torch._C.DisableTorchFunction()))
                unwatched[-1][1].__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if unwatched and unwatched[-1][0] is module:
            unwatched.pop()[1].__exit__(None, None, None)
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
        # Compiled code can't be watched. Importing dynamo is slow, so only where it was.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in network.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it takes no hooks of functions that are not scripted
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(interceptor)
        yield interceptor


# Kernels that multiply, by all the names that backends have for them.
MATRIX_OPERATIONS = {
    *("convolution", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear"),
    *("_convolution", "mkldnn_convolution", "mkldnn_linear", "cudnn_convolution", "conv2d"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_native_multi_head_attention", "lstm", "gru", "_thnn_fused_lstm_cell", "bilinear"),
    *("_trilinear", "matmul", "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "vdot", "ger"),
    *("_sparse_mm", "_sparse_addmm", "sspaddmm", "hspmm", "smm", "_sparse_sparse_matmul"),
    *("sparse_sampled_addmm", "_sparse_mm_reduce_impl", "_cslt_sparse_mm", "_euclidean_dist"),
    *("_sparse_semi_structured_linear", "_sparse_semi_structured_mm", "_int_mm", "_scaled_mm"),
    *("_sparse_semi_structured_addmm", "_addmm_activation", "_grouped_mm", "_scaled_grouped_mm"),
    *("_weight_int4pack_mm", "_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu", "_mixed_mm"),
    *("_embedding_bag", "_embedding_bag_forward_only", "_transformer_encoder_layer_fwd"),
    *("_flash_attention_forward", "_efficient_attention_forward", "_thnn_fused_gru_cell"),
    *("_scaled_dot_product_fused_attention_overrideable", "conv_depthwise3d", "slow_conv3d"),
    *("_slow_conv2d_forward", "_conv_depthwise2d", "slow_conv_transpose2d", "slow_conv_dilated2d"),
}
FOREIGN_PRODUCT = re.compile("conv|linear|matmul|mm|gemm|attention|attn|bag|lstm|gru|rnn")
"""How products are called that are not torch's own: torchvision's, quantised ones."""
BROADCAST = "multiplies tensors by broadcasting and sums, as a matrix product does"
BY_ELEMENTS = "multiplies by elements with a weight and sums, as a linear layer does"
# They cost memory traffic, which is another total, and no arithmetic.
FREE = {
    *("clone", "copy", "to_copy", "cat", "stack", "index_select", "index", "repeat", "fill"),
    *("empty", "empty_like", "zeros", "zeros_like", "ones", "ones_like", "new_zeros", "full_like"),
    *("new_empty", "empty_strided", "new_empty_strided", "zero", "full", "arange", "scalar_tensor"),
    *("constant_pad_nd", "gather", "scatter", "flip", "roll", "lift_fresh", "item", "detach"),
    *("local_scalar_dense", "alias", "new_ones", "select_scatter", "slice_scatter", "new_full"),
    *("unsafe_view", "resize", "set", "as_strided", "index_put", "to_dense", "to_sparse"),
    *("eye", "embedding"),
}
"""Operations that move values, and compute none; without the underscores around their names."""


@dataclass(frozen=True)
class TrialCall:
    """A call of a layer, product or layer of neurons: the shapes met, and at which network call.

    `spikes`: whether it is a layer that was fed with spikes.
    """

    key: Key
    shapes: tuple[Shape, ...]
    step: int
    spikes: bool = False


@dataclass
class TrialRun:
    """A trial run: its calls in order, what it gave, and the FLOP of what is not counted.

    `uncounted`: by operation, outside of neurons. `neurons`: the class of each layer of neurons.
    """

    calls: list[TrialCall] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    uncounted: dict[str, int] = field(default_factory=dict)
    neurons: dict[str, str] = field(default_factory=dict)


class Unclaimed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds matrix operations that no watched function made, and adds up all other FLOP."""

    # One level below functions, where every operation of torch passes: compiled or scripted code
    # calls no function that could be watched, and would be missing from the count without a word.

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # where True, torch imports its compiler; networks are run eagerly here anyway

    def __init__(
        self, interceptor: Interceptor, trace: TrialRun, neurons: set[str], network: nn.Module
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.interceptor, self.trace, self.neurons = interceptor, trace, neurons
        # By storage, as a view of a weight is one.
        self._weights = {value.untyped_storage().data_ptr() for value in network.parameters()}
        self.problem = ""
        # By storage, which views share: products with a weight, or larger than either factor, the
        # sizes of these, and whether it is larger. The product is kept, so that its storage is not
        # given to another tensor.
        self._outer: dict[int, tuple[Tensor, Shape, Shape, bool]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.interceptor.running or self.interceptor.claimed:
            return result
        (space, _, name), path = func._schema.name.partition("::"), self.interceptor.path
        plain, problem = name.strip("_"), ""
        # What is inside neurons has a column of its own: their updates.
        outside = not self.neurons.intersection(path)
        foreign = outside and space != "aten" and FOREIGN_PRODUCT.search(name)
        if foreign or name.rstrip("_") in MATRIX_OPERATIONS:
            problem = f"computes {name} in compiled or fused code, whose inputs can't be seen"
        elif outside:
            problem = self._sums_products(name, args, result)
        if problem and not self.problem:
            # Not raised here: compiled code would wrap the error up in its own.
            self.problem = _unseen(path, problem)
        if not problem and outside and not func.is_view and plain not in FREE:
            values = [*args, *(result if isinstance(result, tuple | list) else [result])]
            flop = max((v.numel() for v in values if isinstance(v, Tensor)), default=0)
            self.trace.uncounted[plain] = self.trace.uncounted.get(plain, 0) + flop
        return result

    def _sums_products(self, name: str, args: tuple[Any, ...], result: Any) -> str:
        """Return how this sums products over an axis that both of their factors have, or ""."""
        factors = [x for x in args[:2] if isinstance(x, Tensor)]
        if name == "mul" and len(factors) == 2 and result.layout == torch.strided:
            wider = result.numel() > max(x.numel() for x in factors)
            # Those of activations alone may be a norm's squares, a mask or a gate.
            if wider or sum(_storage(x) in self._weights for x in factors) == 1:
                shapes = [(1,) * (result.dim() - x.dim()) + tuple(x.shape) for x in factors]
                self._outer[_storage(result)] = (result, shapes[0], shapes[1], wider)
        elif name in ("sum", "mean") and factors and factors[0].layout == torch.strided:
            x = factors[0]
            product, left, right, wider = self._outer.get(_storage(x), (None, (), (), False))
            said = BROADCAST if wider else BY_ELEMENTS
            if product is None or x.shape != product.shape:
                return said if wider else ""
            given = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
            summed = [axis % x.dim() for axis in given] or range(x.dim())
            return said if any(left[axis] > 1 and right[axis] > 1 for axis in summed) else ""
        return ""


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr() if x.layout == torch.strided else 0


def _unseen(path: Sequence[str], problem: str) -> str:
    where = f"layer {path[-1]}" if path and path[-1] else "the network"
    return f"{where} can't be counted: it {problem}; write it with Conv, Linear or matmul"


def trace(network: nn.Module, presentation: Presentation, neurons: set[str]) -> TrialRun:
    """Run a copy of `network`; return the calls of operations and neurons. Raises TserError."""
    found, made = TrialRun(), fresh_copy(network)
    at = [0]

    def sink(met: Met) -> None:
        spikes = isinstance(met, LayerCall) and find_kind(met.x) == SPIKES
        found.calls.append(TrialCall((met.name, met.type), met.shapes(), at[0], spikes))

    def leaving(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = first_tensor(output)
        if name in neurons and x is not None:
            found.calls.append(TrialCall((name, NEURON), (tuple(x.shape),), at[0]))

    with intercepted(made, sink, leaving):
        found.outputs = try_out(made, presentation, lambda step: at.__setitem__(0, step))
    return found


def survey(network: nn.Module, presentation: Presentation) -> TrialRun:
    """Run a copy of `network`, and find its neurons and what of it is not counted.

    A module that makes spikes of values that are none is a layer of neurons, whoever wrote it.
    Raises TserError where the network fails, or computes what can't be seen.
    """
    found, made = TrialRun(), fresh_copy(network)
    forgotten = different(network, made)
    known = {name: neuron_class(module) for name, module in neuron_layers(made)}
    inside = _descendants(made, known)
    busy: set[str] = set()
    ran: list[str] = []

    def sink(met: Met) -> None:
        if isinstance(met, LayerCall):
            # Looked at here, where both sizes are known: torch's own words name no layer.
            wanted, axis, what = met.weight.shape[-1], -1, "features"
            if met.conv is not None:
                wanted, axis, what = met.conv.in_channels, -1 - len(met.conv.kernel), "channels"
            if met.x.dim() < -axis or met.x.shape[axis] != wanted:
                said = f"layer {met.name} takes {wanted} {what}"
                message = f"{said}, and is fed with {tuple(met.x.shape)}"
                raise MisfitError(message, wanted, channels=not ran and met.conv is not None)
        ran.append(met.name)
        busy.update(interceptor.path)

    def leaving(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        fed, x = first_tensor(args), first_tensor(output)
        # One that holds a layer is a block of the network, whatever comes out of it.
        if name in busy or name in known or name in inside or fed is None or x is None:
            return
        if find_kind(x) == SPIKES and find_kind(fed) not in ("", SPIKES):
            found.neurons[name] = type(module).__name__

    with (
        intercepted(made, sink, leaving) as interceptor,
        Unclaimed(interceptor, found, set(known), made) as unclaimed,
    ):
        found.outputs = try_out(made, presentation)
    # A state changes as the network runs: what only its reset changes is a weight, and is lost.
    for (module, attribute), value in forgotten.items():
        if equal(getattr(made.get_submodule(module), attribute, None), value):
            raise TserError(
                f"{module or 'the network'} can't be reset: its reset changes {attribute}, which "
                "running the network does not change, as if it were a weight; give the method "
                "another name, as its states are reset before every batch"
            )
    if unclaimed.problem:
        raise TserError(unclaimed.problem)
    nested = _descendants(made, found.neurons)
    own = {name: kind for name, kind in found.neurons.items() if name not in nested | busy}
    found.neurons = {**known, **own}
    for path in interceptor.left_torch:
        if not found.neurons.keys() & set(path):
            raise TserError(_unseen(path, "computes with NumPy"))
    return found


def _descendants(network: nn.Module, names: Iterable[str]) -> set[str]:
    """Return the modules inside those of these names."""
    return {
        f"{name}.{child}"
        for name in names
        for child, _ in network.get_submodule(name).named_modules()
        if child
    }
