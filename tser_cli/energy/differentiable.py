"""The energy of a network in training, with a gradient: what `counter.py` counts, as a tensor.

    meter = EnergyMeter(model, model.input_kinds())
    with meter:
        logits = model(images_NCHW, timesteps=T)
    accumulates = meter.take() / len(images_NCHW)

The value is the counter's: inputs x fan-out, whole numbers up to 2^53 in float64. Each input of a
layer that spikes drive has its fan-out as gradient, so that the spikes' surrogate gradient carries
the price of a spike back to the weights. Multiply-accumulates do not depend on the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.energy.counts import REAL
from tser_cli.energy.geometry import geometry
from tser_cli.energy.tally import accumulates, channel_sums
from tser_cli.errors import TserError


class EnergyMeter:
    """Add up the accumulates of all layers of `model` that spikes drive, inside a `with`.

    `kinds`: what feeds each Conv2d and Linear, as for `counting`. The hooks are on the layers
    inside the `with` alone.
    """

    def __init__(self, model: nn.Module, kinds: Mapping[str, str]) -> None:
        self._layers = {
            name: model.get_submodule(name) for name, kind in kinds.items() if kind != REAL
        }
        self._fan_outs: dict[tuple[Any, ...], Tensor] = {}
        self._found: dict[str, Tensor] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> EnergyMeter:
        self._found.clear()
        for name, layer in self._layers.items():
            hook = layer.register_forward_pre_hook(partial(self._watch, name))
            self._hooks.callback(hook.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()

    def take(self) -> Tensor:
        """Return the accumulates of the batch, a float64 scalar with a gradient; forget them.

        Raises TserError where a layer did not run.
        """
        missing = self._layers.keys() - self._found.keys()
        if missing:
            raise TserError(
                f"layer {min(missing)} did not run in this pass, so that its energy is not known; "
                "an energy budget needs a network that computes all of its layers for every image"
            )
        total = torch.stack(list(self._found.values())).sum()
        self._found.clear()
        return total

    def _watch(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if name in self._found:
            raise TserError(
                f"layer {name} ran twice in one pass; give every use of a layer a module of its own"
            )
        x: Tensor = args[0]
        self._found[name] = _Accumulates.apply(x, self._fan_out(name, module, x))

    def _fan_out(self, name: str, module: nn.Module, x: Tensor) -> Tensor:
        key = (name, x.device, *x.shape[1:])
        if key not in self._fan_outs:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            found = geometry(module, tuple(x.shape)).fan_out_P
            self._fan_outs[key] = found.to(x.device, torch.float64)
        return self._fan_outs[key]


class _Accumulates(torch.autograd.Function):
    """Sum of inputs x fan-out over a batch, float64; the gradient of an input is its fan-out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fan_out_P: Tensor) -> Tensor:
        # No tensor is saved for backward: blocks that are computed again must find as many as
        # they had without a meter.
        ctx.fan_out_P, ctx.shape, ctx.dtype = fan_out_P, x.shape, x.dtype
        sums_BP = channel_sums(x, torch.promote_types(x.dtype, torch.float32))
        return accumulates(sums_BP, fan_out_P).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        price_P = (grad * ctx.fan_out_P).to(ctx.dtype)
        maps = ctx.shape[2:] if len(ctx.shape) == 4 else (1,)
        return price_P.view(maps).expand(ctx.shape), None
