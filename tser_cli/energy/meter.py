"""The energy of a network in training, with a gradient: what the counter counts, as a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError
from tser_cli.energy.counter import Counter, DeclaredPlan, LayerCall, Met, watch
from tser_cli.energy.counts import REAL
from tser_cli.energy.tally import accumulates, channel_sums


class Meter(Protocol):
    """What meters a network that is called inside a `with`."""

    def __enter__(self) -> object: ...
    def __exit__(self, *error: object) -> None: ...
    def take(self) -> Tensor:
        """Return the accumulates of the batch, see `EnergyMeter.take`."""


class EnergyMeter(Counter):
    """The counter of a network in training: its accumulates as a tensor [2] with a gradient.

        meter = EnergyMeter(model, model.input_kinds())
        with meter:
            logits = model(images_NCHW, timesteps=T)
        accumulates = meter.take() / len(images_NCHW)

    All of them, and those whose sums 16 bits hold. The values are the counter's: inputs x fan-out,
    whole numbers up to 2^53 in float64. Each input of a layer that spikes drive has its fan-out as
    gradient, so that the spikes' surrogate gradient carries the price of a spike back to the
    weights. Multiply-accumulates do not depend on data.
    """

    def __init__(self, model: nn.Module, kinds: Mapping[str, str]) -> None:
        self._model, self._kinds = model, kinds
        self._layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and kinds.get(name, REAL) != REAL
        }
        super().__init__(DeclaredPlan(kinds, self._layers))
        self._found: dict[str, Tensor] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> EnergyMeter:
        self._forget()
        watch(self._model, self, self._layers, (), self._hooks)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def operation(self, met: Met) -> None:
        """Price one call of a layer."""
        assert isinstance(met, LayerCall), "hooks show layers alone"
        key, (_, place) = (met.name, met.type, 0), self.place((met.name, met.type), met.shapes())
        if key not in self.records:
            self.records[key] = met.described(met.name, place, partial(self._find_kind, met.name))
        # float64 holds whole numbers up to 2^53, where a batch passes float32's 2^24 at once; and
        # unlike int64 it can have a gradient.
        fan_out_P = self.records[key].fan_out_P.to(met.x.device, torch.float64)
        self.records[key].fan_out_P = fan_out_P
        # Not under no_grad, as other counts are: the gradient is what a meter is for.
        facts = replace(self.records[key].facts, input_kind=self._kinds[met.name])
        found = accumulated(met.x, fan_out_P)
        self._found[met.name] = torch.stack([found, found * facts.narrow])

    def take(self) -> Tensor:
        """Return the accumulates of the batch, float64 [2] with a gradient; forget them.

        Raises TserError where a layer did not run.
        """
        total = total_of(self._found, self._layers)
        self._forget()
        return total

    def _forget(self) -> None:
        # Every batch begins anew, so that an epoch does not pile up: a budget asks for one batch.
        self._found.clear()
        self.images.clear()
        self._ordinals.clear()


def total_of(found: Mapping[str, Tensor], layers: Iterable[str]) -> Tensor:
    """Return the sum of what was found of all `layers`. Raises TserError where one did not run."""
    missing = set(layers) - found.keys()
    if missing:
        raise TserError(
            f"layer {min(missing)} did not run in this pass, so that its energy is not known; "
            "an energy budget needs a network that computes all of its layers for every image"
        )
    return torch.stack(list(found.values())).sum(0)


def accumulated(x: Tensor, fan_out_P: Tensor, sums: torch.dtype = torch.float32) -> Tensor:
    """Return the sum of inputs x fan-out over a batch, float64 with a gradient.

    `sums`: in which type, or a wider one of `x`, channels are added; in float32 many times as fast
    as in float64, and whole numbers exactly up to 2^24.
    """
    found: Tensor = _Accumulates.apply(x, fan_out_P, torch.promote_types(x.dtype, sums))
    return found


class _Accumulates(torch.autograd.Function):
    """Sum of inputs x fan-out over a batch, float64; the gradient of an input is its fan-out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fan_out_P: Tensor, sums: torch.dtype) -> Tensor:
        # No tensor is saved for backward: blocks that are computed again, to save memory, must
        # find as many as they had without a meter.
        ctx.fan_out_P, ctx.shape, ctx.dtype = fan_out_P, x.shape, x.dtype
        return accumulates(channel_sums(x, sums), fan_out_P).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        price_P = (grad * ctx.fan_out_P).to(ctx.dtype)
        maps = ctx.shape[2:] if len(ctx.shape) == 4 else (1,)
        # Expanded, not copied: the price is the same for every image and channel.
        return price_P.view(maps).expand(ctx.shape), None, None
