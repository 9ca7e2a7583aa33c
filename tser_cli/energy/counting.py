"""Counting synaptic operations while a network runs.

    with counting(model, model.input_kinds()) as counter:
        for images_NCHW, _ in loader:
            model(images_NCHW, timesteps=T)
    counts = counter.counts()

Hooks look at what every convolution and linear layer is fed. Totals stay on the device until
`counts()` reads them all at once; they are integers, and the same for any batch split, memory
layout, device and autocast. An ANN's counts do not depend on the data: one image is enough.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tser_cli.energy.counts import INPUT_KINDS, REAL, Counts, Layer, LayerCounts
from tser_cli.energy.geometry import Geometry, check_countable, geometry
from tser_cli.energy.tally import FAULTS, fault, tally
from tser_cli.errors import TserError, unknown

UNCOUNTED = (
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.Bilinear,
)
"""Layers with weights whose operations are not counted; Conv2d is taken out of the first."""


@dataclass
class Record:
    """What is gathered of one layer: `tallies` has [3, steps, images] a batch, on the device."""

    module: nn.Conv2d | nn.Linear
    kind: str
    shape: tuple[int, ...] = ()
    geometry: Geometry | None = None
    once: bool = False
    neuron_updates: int = 0
    tallies: list[Tensor] = field(default_factory=list)
    faults: list[Tensor] = field(default_factory=list)


class SopCounter:
    """Gathers the counts of a network; `counting` puts its hooks on and takes them off."""

    def __init__(self, model: nn.Module, kinds: Mapping[str, str]) -> None:
        self._records = _records(model, kinds)
        self._order: dict[str, None] = {}
        self._batches: list[int] = []
        self._timesteps = 0

    def begin(self, images: int, timesteps: int) -> None:
        """A batch of `images` begins; a call of the model says so by itself.

        Raises TserError where `timesteps` differs from the batches before.
        """
        if self._batches and timesteps != self._timesteps:
            raise TserError(
                f"counted a batch of {timesteps} time steps after one of {self._timesteps}; count "
                "each number of time steps by itself"
            )
        self._timesteps = timesteps
        self._batches.append(images)

    def counts(self) -> Counts:
        """Everything counted so far, read from the device.

        Raises TserError where nothing ran, a layer was passed over, or data were not of the kind
        that the layer was declared to have.
        """
        self._check_complete()
        self._check_faults()
        images = sum(self._batches)
        layers = tuple(self._layer_counts(name) for name in self._order)
        assert all(counts.nonzero_TI.shape == (self._timesteps, images) for counts in layers)
        return Counts(self._timesteps, images, layers)

    def watch_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the model: `model(images_NCHW, timesteps=T)`, or without T for an ANN."""
        images = first_input(args, kwargs)
        timesteps = args[1] if len(args) > 1 else kwargs.get("timesteps", 1)
        self.begin(len(images), int(timesteps))

    def watch_layer(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Pre-hook of a convolution or linear layer."""
        record, x = self._records[name], first_input(args, kwargs).detach()
        self._check_in_batch(name, record)
        steps = self._steps(name, len(x))
        if record.geometry is None:
            self._order[name] = None
            record.shape, record.once = tuple(x.shape[1:]), steps < self._timesteps
            record.geometry = geometry(record.module, tuple(x.shape))
        if tuple(x.shape[1:]) != record.shape:
            raise TserError(
                f"layer {name} met inputs of {tuple(x.shape[1:])} after {record.shape}; count "
                "images of one size at a time"
            )
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            fan_out_P = self._fan_out(record, x.device)
            record.tallies.append(tally(x, record.kind, fan_out_P).unflatten(1, (steps, -1)))
            if record.kind != REAL:
                record.faults.append(fault(x, record.kind))

    def watch_neuron(
        self,
        name: str,
        owner: str,
        seen: set[str],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Pre-hook of a layer of spiking neurons; its updates are those of the layer `owner`."""
        x = first_input(args, kwargs)
        if self._steps(name, len(x)) != self._timesteps:
            raise TserError(
                f"the neurons {name} saw {len(x)} inputs for {self._batches[-1]} images at "
                f"{self._timesteps} time steps; neurons must be run at every step"
            )
        if name not in seen:
            seen.add(name)
            self._records[owner].neuron_updates += x[0].numel()

    def _fan_out(self, record: Record, device: torch.device) -> Tensor:
        assert record.geometry is not None
        if record.fan_out_P is None or record.fan_out_P.device != device:
            record.fan_out_P = record.geometry.fan_out_P.to(device)
        return record.fan_out_P
