"""The energy of a network in training that does not say what feeds its layers, with a gradient."""

from __future__ import annotations

import collections
from contextlib import ExitStack
from math import prod

import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError
from tser_cli.energy import tally
from tser_cli.energy.any_network.products import ProductCall, meets, paired
from tser_cli.energy.any_network.watch import intercepted
from tser_cli.energy.counter import LayerCall, Met, use_name
from tser_cli.energy.counts import REAL, SPIKES, Counts, LayerCounts
from tser_cli.energy.meter import accumulated, total_of


class TrialMeter:
    """As `EnergyMeter`, by watching functions: products between tensors have a price too.

    `counts`: of a pass in which all neurons spiked, which shows what drives each operation; silent
    ones would not show it. Only totals are wanted, so that it does not matter which axis is time.
    """

    def __init__(self, model: nn.Module, counts: Counts) -> None:
        self._model = model
        self._driven = {
            one.layer.name: one for one in counts.layers if one.layer.input_kind != REAL
        }
        self._real = {one.layer.name for one in counts.layers} - self._driven.keys()
        self._found: dict[str, Tensor] = {}
        self._uses: collections.Counter[tuple[str, str]] = collections.Counter()
        self._watched = ExitStack()

    def __enter__(self) -> TrialMeter:
        self._forget()
        self._watched.enter_context(intercepted(self._model, self._operation))
        return self

    def __exit__(self, *error: object) -> None:
        self._watched.close()

    def take(self) -> Tensor:
        """Return the accumulates of the batch, float64 [2] with a gradient; forget them.

        Raises TserError where an operation did not run, or one that did was not tried.
        """
        total = total_of(self._found, self._driven)
        self._forget()
        return total

    def _forget(self) -> None:
        self._found.clear()
        self._uses.clear()

    def _operation(self, met: Met) -> None:
        use = self._uses[met.name, met.type]
        self._uses[met.name, met.type] += 1
        name = use_name(met.name, use)
        if name in self._real:
            return
        if name not in self._driven:
            raise TserError(f"layer {name} did not run when the network was tried")
        known = self._driven[name]
        # Watched functions are shown without gradients; a price needs them. And what it saves is
        # its own: blocks that are computed again must find as many tensors as without a meter.
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
            found = _of_layer(met, known) if isinstance(met, LayerCall) else _of_product(met, known)
            self._found[name] = torch.stack([found, found * known.layer.narrow])


def _same(saved: Tensor) -> Tensor:
    return saved


def _of_layer(met: LayerCall, known: LayerCounts) -> Tensor:
    """Return inputs x fan-out, of all calls of a layer in this batch."""
    # channels come before the axes of a map, and time and images, however many, before them
    axes = 0 if met.conv is None else len(met.conv.kernel)
    channels, *maps = met.x.shape[met.x.dim() - axes - 1 :]
    weight, shape = tuple(met.weight.shape), (1, channels, *maps)
    found = tally.layer_geometry(met.conv, weight, shape, channels)
    fan_out_P = found.fan_out_P.to(met.x.device, torch.float64)
    x_BCP1 = met.x.reshape(-1, channels, prod(maps), 1)
    if known.layer.input_kind != SPIKES:  # -1 costs what 1 does; a 0 that becomes more, as a spike
        x_BCP1 = x_BCP1 * torch.where(x_BCP1 < 0, -1.0, 1.0).to(x_BCP1.dtype)
    # multiples of a c that folds into the weights are no whole numbers: float32 would round them
    scale = abs(known.layer.scale)
    sums = torch.float32 if scale == 1 else torch.float64
    return accumulated(x_BCP1, fan_out_P, sums) / scale


def _of_product(met: Met, known: LayerCounts) -> Tensor:
    """Return the accumulates of a product: see `products`."""
    assert isinstance(met, ProductCall), "there are no other operations"
    driving = [place for place, one in enumerate(known.operands) if one.kind != REAL]
    if len(driving) == 2:
        return paired(met.product, "", torch.abs)
    part, other = met.product.factors[driving[0]], met.product.factors[1 - driving[0]]
    assert part.tensor is not None, "a factor that is never formed is real"
    return part.tensor.abs().sum(dtype=torch.float64) * meets(part, other, "")
