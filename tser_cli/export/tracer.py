"""One time step of a network as a list of calls (torch.fx), with the shape of each.

A network may ask for shapes, and choose by them: it is shown images without memory (torch's "meta")
that have some, in a batch that no other axis is as long as.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm

from tser_cli.base.errors import ExportError
from tser_cli.models.base import Classifier
from tser_cli.models.neurons import SpikingNeuron

BATCH = 997  # a prime: other axes are products of small numbers
WITH_NODE = (
    *(nn.Conv1d, nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
    SpikingNeuron,
)
PASSED_OVER = (nn.Identity, nn.Dropout)
KNOWN = (*WITH_NODE, *PASSED_OVER, _BatchNorm)


class OneStep(nn.Module):
    """A time step of `model`: images -> logits."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.model.body(self.model.begun(images_NCHW), 1)


def traced(model: Classifier, image_shape: tuple[int, int, int]) -> fx.GraphModule:
    """Return the calls of a time step; `meta["value"]` of each has the shape of what it gives.

    Raises ExportError for a layer that has no node, and what the network raises.
    """
    step = OneStep(model).eval()
    twin = copy.deepcopy(step).to("meta")
    with torch.no_grad():
        graph = _Tracer(torch.empty(BATCH, *image_shape, device="meta")).trace(twin)
    return fx.GraphModule(step, graph)


class _Sized(fx.Proxy):
    """What a call gives, with a value that has its shape."""

    value: Any

    @property
    def shape(self) -> torch.Size:
        return self.value.shape  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        return int(self.value.ndim)

    def dim(self) -> int:
        return self.ndim

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]

    def __len__(self) -> int:
        return len(self.value)


class _Tracer(fx.Tracer):
    def __init__(self, images_NCHW: Tensor) -> None:
        super().__init__()
        self._images_NCHW = images_NCHW
        self._inside = False  # a layer that is computed for its shape, and not traced

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named_more: Any
    ) -> Any:
        made: Any = super().create_proxy(kind, target, args, kwargs, *more, **named_more)
        if kind != "output":
            given, named = (map_aggregate(part, _value) for part in (args, kwargs))
            self._inside = True
            made.value = made.node.meta["value"] = self._computed(kind, target, given, named)
            self._inside = False
        return made

    def _computed(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self._images_NCHW
        if kind == "get_attr":
            return reduce(getattr, target.split("."), self.root)
        if kind == "call_function":
            return target(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        module = self.root.get_submodule(target)
        if not isinstance(module, KNOWN):
            raise unsupported(f"{layer_name(target)} ({type(module).__name__})")
        # neurons give what they are fed with another value
        return args[0] if isinstance(module, SpikingNeuron) else module(*args, **kwargs)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        assert isinstance(obj, _Sized)
        whole: Any = obj
        return iter([whole[place] for place in range(len(obj))])

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        inside = self._inside
        return attr_val if inside else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        # VGG groups its layers anew at each call; such a group has no name of its own
        if self._inside or not any(m is module for module in self.root.modules()):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # fx takes torch's own layers for whole; of quantised ones, which are ours, it would trace
        # the rounding of their weights, and of spikingjelly's how they fold time
        return isinstance(m, KNOWN) or super().is_leaf_module(m, module_qualified_name)


def _value(part: Any) -> Any:
    return part.value if isinstance(part, _Sized) else part


def layer_name(target: str) -> str:
    """Return a layer's name in the network from its name in `OneStep`."""
    return target.removeprefix("model.")


def unsupported(layer: str) -> ExportError:
    """Return the error for what has no node."""
    return ExportError(
        f"the layer {layer} can't be exported: the formats hold convolutions with a norm behind "
        "them, linear layers, pools, additions and spiking neurons, and ONNX the products and sums "
        "of attention. Distil a residual, SEW or VGG student instead"
    )
