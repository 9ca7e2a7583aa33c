"""Networks from elsewhere, small, that note what every operation is fed with.

`note(name, *tensors)` keeps the inputs of an operation in the order of its calls; `form` says where
steps and images are in them: "folded" [T*N, ...], "time" [T, N, ...], "steps" a call a step with
[N, ...], or "once" [N, ...].
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn import functional as F

from tser_cli.energy.any_network.layouts import present
from tser_cli.energy.any_network.network_counter import TrialCounter, count_operations
from tser_cli.energy.counts import Counts
from tser_cli.energy.tally import Geometry, layer_geometry, shape_of


class Noting(nn.Module):
    """A network that notes inputs; `forms` by operation, `layout` and T are the network's."""

    layout = "time-first"
    form = "folded"

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[str, list[tuple[Tensor, ...]]] = {}
        self.forms: dict[str, str] = {}

    def note(self, name: str, *tensors: Tensor, form: str = "") -> tuple[Tensor, ...]:
        self.noted.setdefault(name, []).append(tuple(x.detach().clone() for x in tensors))
        self.forms[name] = form or self.form
        return tensors

    def layer(self, name: str, x: Tensor, form: str = "") -> Tensor:
        (x,) = self.note(name, x, form=form)
        y: Tensor = self.get_submodule(name)(x)
        return y


def over_steps(act: nn.Module, x: Tensor, steps: int) -> Tensor:
    """Neurons on [T * N, ...], time outermost."""
    y: Tensor = act(x.unflatten(0, (steps, -1))).flatten(0, 1)
    return y


def if_node(threshold: float = 0.5, mode: str = "m") -> nn.Module:
    return neuron.IFNode(v_threshold=threshold, step_mode=mode)


class Plain(Noting):
    """spikingjelly's multi-step form, [T, N, C, H, W] throughout."""

    form = "time"

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = layer.Conv2d(2, 4, 3, padding=1, step_mode="m")
        self.act1 = if_node(0.3)
        self.conv2 = layer.Conv2d(4, 6, 3, padding=1, step_mode="m", bias=False)
        self.act2 = if_node(0.2)
        self.fc = layer.Linear(6 * 36, 3, step_mode="m")

    def forward(self, x_TNCHW: Tensor) -> Tensor:
        x = self.act1(self.layer("conv1", x_TNCHW))
        x = self.act2(self.layer("conv2", x))
        return self.layer("fc", x.flatten(2))


class Strided(Noting):
    """Strides, groups and dilation; time folded into the batch, T known to the network."""

    layout = "folded"

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.stem = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 0), groups=2)
        self.dilated = nn.Conv2d(4, 4, 2, dilation=2, padding="same")
        self.act1, self.act2, self.act3 = if_node(0.3), if_node(0.2), if_node(0.1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        x = over_steps(self.act1, self.layer("stem", x), self.timesteps)
        x = over_steps(self.act2, self.layer("grouped", x), self.timesteps)
        x = over_steps(self.act3, self.layer("dilated", x), self.timesteps)
        return self.layer("fc", x.amax((2, 3)))


class Transposed(Noting):
    """A decoder with transposed convolutions, one step a call."""

    layout, form = "stepwise", "steps"

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2)
        self.act1, self.act2 = if_node(0.3, "s"), if_node(0.2, "s")
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.out = nn.ConvTranspose2d(6, 1, (2, 3), dilation=(2, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.layer("stem", x))
        return self.layer("out", self.act2(self.layer("up", x)))


class OneDimensional(Noting):
    """Conv1d and ConvTranspose1d on [T, N, C, L]; functional, with a parameter of its own."""

    form = "folded"

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 5, padding=2)
        self.kernel = nn.Parameter(torch.randn(3, 4, 3))
        self.up = nn.ConvTranspose1d(3, 2, 4, stride=3)
        self.act1, self.act2 = if_node(0.3), if_node(0.2)

    def forward(self, x: Tensor) -> Tensor:
        steps = len(x)
        x = self.layer("stem", x.flatten(0, 1))
        (x,) = self.note("kernel", over_steps(self.act1, x, steps))
        x = over_steps(self.act2, F.conv1d(x, self.kernel, stride=2, padding=1), steps)
        return self.layer("up", x).unflatten(0, (steps, -1))


class ThreeDimensional(Noting):
    """Conv3d on volumes, one step a call."""

    layout, form = "stepwise", "steps"

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 3, 3, padding=1)
        self.down = nn.Conv3d(3, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1))
        self.act1, self.act2 = if_node(0.3, "s"), if_node(0.2, "s")
        self.up = nn.ConvTranspose3d(4, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.layer("stem", x))
        return self.layer("up", self.act2(self.layer("down", x)))


class Sew(Noting):
    """Sums of spikes, and a layer that two places of a step share."""

    form = "folded"

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.block = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.after = nn.Conv2d(4, 2, 1)
        self.act1, self.act2, self.act3 = if_node(0.2), if_node(0.1), if_node(0.1)

    def forward(self, x: Tensor) -> Tensor:
        steps = len(x)
        first = over_steps(self.act1, self.layer("stem", x.flatten(0, 1)), steps)
        second = over_steps(self.act2, self.layer("block", first), steps)
        (summed,) = self.note("block#2", first + second)
        third = over_steps(self.act3, self.block(summed), steps)
        (y,) = self.note("after", summed + third)
        return self.after(y).unflatten(0, (steps, -1)).mean((3, 4))


class Attention(Noting):
    """Spiking attention on [T, N, L, D]: `kind` is how Q, K and V are multiplied."""

    form = "time"

    def __init__(self, kind: str, heads: int = 2) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.stem = nn.Linear(5, 8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.act0, self.acts = if_node(0.2), nn.ModuleList(if_node(0.1) for _ in range(4))
        self.proj = nn.Linear(8, 3)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act0(self.layer("stem", x))
        q, k, v = (
            self.split(act(self.layer(name, x)))
            for name, act in zip(("q", "k", "v"), self.acts, strict=False)
        )
        y = self.acts[3](self.attend(q, k, v).transpose(2, 3).flatten(3))
        return self.layer("proj", y)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kind == "qk first":
            a, b = self.note("(network)", q, k.transpose(-1, -2))
            c, d = self.note("(network)#2", a @ b, v)
            return torch.matmul(c, d) * 0.25
        if self.kind == "kv first":
            self.note("(network)", k.transpose(-1, -2), v)
            kv = torch.einsum("tnhld,tnhle->tnhde", k, v)
            self.note("(network)#2", q, kv)
            return torch.einsum("...ld,...de->...le", q, kv)
        self.note("(network)", q, k.transpose(-1, -2))
        # By lists: the test looks at the scores, and the network does not compute them twice.
        products = np.array(q.tolist()) @ np.array(k.transpose(-1, -2).tolist())
        scores = (torch.tensor(products, dtype=q.dtype) / q.shape[-1] ** 0.5).softmax(-1)
        self.note("(network)#2", scores, v)
        return F.scaled_dot_product_attention(q, k, v)


class Merged(Noting):
    """Attention by bmm on [T * N * heads, L, d], in a submodule; signed spikes before the end."""

    layout = "folded"

    class Core(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return torch.bmm(q, k.transpose(1, 2))

    def __init__(self, timesteps: int, heads: int = 4) -> None:
        super().__init__()
        self.timesteps, self.heads = timesteps, heads
        self.stem, self.core = nn.Linear(6, 8), Merged.Core()
        self.act, self.head = if_node(0.2), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        x = over_steps(self.act, self.layer("stem", x), self.timesteps)
        q = x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
        self.note("core", q, q.transpose(1, 2), form="folded")
        scores = self.core(q, q).unflatten(0, (-1, self.heads))
        return self.layer("head", (scores - 1).sign().sum((1, 2)).sign())


class OwnNeuron(nn.Module):
    """A leaky neuron of nobody's library; it keeps its membrane potential until told to forget."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def reset(self) -> None:
        self.v = None

    def forward(self, x: Tensor) -> Tensor:
        v = x if self.v is None else x + 0.5 * self.v
        spikes = (v > 0.3).to(x.dtype)
        self.v = v * (1 - spikes)
        return spikes


class Own(Noting):
    """Neurons of the user's own; the network makes its own steps, in a loop."""

    layout, form = "inside", "steps"

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.stem, self.mid, self.fc = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.act1, self.act2 = OwnNeuron(), OwnNeuron()

    def forward(self, x: Tensor) -> Tensor:
        self.act1.reset()
        self.act2.reset()
        current, outputs = self.layer("stem", x, form="once"), []
        for _ in range(self.timesteps):
            y = self.act2(self.layer("mid", self.act1(current)))
            outputs.append(self.layer("fc", y))
        return torch.stack(outputs)


class Norse(Noting):
    """norse's sequential network on [T, N, ...]."""

    form = "time"

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        p = norse.LIFParameters(v_th=torch.as_tensor(0.02), tau_mem_inv=torch.as_tensor(500.0))
        self.lift = norse.Lift(nn.Conv2d(2, 4, 3, padding=1))
        self.lif1, self.fc, self.lif2 = norse.LIF(p), nn.Linear(144, 6), norse.LIF(p)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.note("lift.lifted_module", x)
        spikes, _ = self.lif1(self.lift(x))
        spikes, _ = self.lif2(self.layer("fc", spikes.flatten(2)))
        return self.layer("head", spikes)


class NorseRecurrent(Noting):
    """norse's recurrent cell in a loop of the network's own."""

    layout, form = "inside", "steps"

    def __init__(self, timesteps: int) -> None:
        import norse.torch as norse

        super().__init__()
        self.timesteps = timesteps
        p = norse.LIFParameters(v_th=torch.as_tensor(0.05), tau_mem_inv=torch.as_tensor(500.0))
        self.cell, self.fc = norse.LIFRecurrentCell(5, 7, p), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        outputs, before = [], torch.zeros(len(x), 7)
        for _ in range(self.timesteps):
            self.note("cell.input_weights", x)
            self.note("cell.recurrent_weights", before)
            before, state = self.cell(x, state)
            outputs.append(self.layer("fc", before))
        return torch.stack(outputs)


MAPS, VECTORS, VOLUMES, SERIES, TOKENS = (2, 6, 6), (5,), (1, 4, 4, 4), (2, 11), (7, 5)


def geometry(module: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> Geometry:
    """The geometry of a module for an input of [B, C, H, W] or [B, ..., features]."""
    conv = shape_of(module) if isinstance(module, nn.Conv2d) else None
    features = shape[1] if conv is not None else prod(shape[1:])
    return layer_geometry(conv, tuple(module.weight.shape), shape, features)


def assert_same(first: Counts, second: Counts) -> None:
    """Both are counts of the same layers, figure by figure."""
    assert (first.timesteps, first.images) == (second.timesteps, second.images)
    for one, other in zip(first.layers, second.layers, strict=True):
        assert (one.layer, one.neuron_updates) == (other.layer, other.neuron_updates)
        for name in ("executed_T", "nonzero_TI", "events_TI", "value_TI"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def detailed_counter(
    net: Any, images: Tensor, timesteps: int, layout: str = "", found: str = ""
) -> TrialCounter:
    """The counter of a network that was shown these images [N, ...], with all details.

    `layout`: where the network does not say its own; `found`: what is said to the counter.
    """
    layout = layout or net.layout
    shown = present(layout, images, timesteps, net)
    with (
        torch.no_grad(),
        count_operations(net, found or layout, timesteps, detailed=True) as counter,
    ):
        shown.call(net)
    return counter
