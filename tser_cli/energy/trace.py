"""Trial runs on a few images: which operations a network makes, in which order, on what shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tser_cli.energy.counts import SPIKES
from tser_cli.energy.intercept import Interceptor, Operation, intercepted
from tser_cli.energy.layouts import Presentation, fresh_copy, try_out
from tser_cli.energy.neurons import neuron_class, neuron_layers
from tser_cli.energy.tally import find_kind
from tser_cli.errors import TserError

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
