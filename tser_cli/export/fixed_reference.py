"""What integer potentials do: the rule of `fixed_point`, step by step, and what it changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tser_cli.export.fixed_point import FixedGraph, FixedNeuron, Term
from tser_cli.export.graph import INPUT, Conv, Flatten, Linear, Node, Pool
from tser_cli.export.reference import Trace

Values: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Change:
    """How integer potentials differ from the student's own, over all layers, steps and images.

    `parted`: images in which any spike differs. `logits_difference`: the largest.
    """

    values: int
    differing: int
    images: int
    parted: int
    predictions_differing: int
    logits_difference: float

    def described(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """Return it in words."""
        return (
            f"against the student's own potentials, {self.differing:,} of {self.values:,} spikes "
            f"and silences differ on {self.images} test images, in {self.parted} of them; "
            f"{self.predictions_differing} answers differ, logits by {self.logits_difference:.2g} "
            "at most"
        )


def change(truth: Trace, fixed: Trace) -> Change:
    """Compare the run of a student with the run of its integers."""
    differing, parted_N = 0, np.zeros(truth.images, dtype=bool)
    for name, spikes in truth.spikes.items():
        wrong = (spikes != fixed.spikes[name]).reshape(len(spikes), truth.images, -1)
        differing += int(wrong.sum())
        parted_N |= wrong.any((0, 2))
    answers = [logits_TNK.mean(0).argmax(-1) for logits_TNK in (truth.logits_TNK, fixed.logits_TNK)]
    return Change(
        values=sum(spikes.size for spikes in truth.spikes.values()),
        differing=differing,
        images=truth.images,
        parted=int(parted_N.sum()),
        predictions_differing=int((answers[0] != answers[1]).sum()),
        logits_difference=float(np.abs(truth.logits_TNK - fixed.logits_TNK).max()),
    )


@torch.no_grad()
def run_fixed(fixed: FixedGraph, images_NCHW: Tensor) -> Trace:
    """Run the integers over the graph's number of steps.

    `distance` is in units of the threshold, and infinite where neurons read integers alone: no
    rounding may decide there. Integers are int64 here, and 32 bits must suffice: AssertionError
    otherwise. What reads the image is computed in float32, as in the file.
    """
    graph = fixed.graph
    potentials: Values = {}
    spikes: dict[str, list[NDArray[np.bool_]]] = {node.name: [] for node in graph.neurons}
    distance: dict[str, list[NDArray[np.float32]]] = {node.name: [] for node in graph.neurons}
    logits = []
    for _ in range(graph.facts.timesteps):
        values: Values = {INPUT: images_NCHW.float().cpu()}
        for node in graph.nodes:
            if node.name not in fixed.neurons:
                values[node.name] = _layer(node, fixed, values)
                continue
            neuron = fixed.neurons[node.name]
            charged = _charge(neuron, values, potentials.get(node.name))
            fired = charged >= neuron.threshold
            soft = charged - neuron.threshold * fired
            potentials[node.name] = soft if neuron.soft else charged.where(~fired, neuron.rest)
            values[node.name] = fired.long()
            spikes[node.name].append(fired.numpy())
            distance[node.name].append(_distance(neuron, charged))
        logits.append(values[graph.output].double().numpy())
    return Trace(np.stack(logits), _stacked(spikes), _stacked(distance))


def _distance(neuron: FixedNeuron, charged: Tensor) -> NDArray[np.float32]:
    apart = (charged - neuron.threshold).abs().double() / neuron.threshold
    found: NDArray[np.float32] = (apart + (math.inf if neuron.exact else 0.0)).float().numpy()
    return found


def _stacked(kept: Mapping[str, list[NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.stack(steps) for name, steps in kept.items()}


def _charge(neuron: FixedNeuron, values: Values, before: Tensor | None) -> Tensor:
    """Return h, as int64."""
    x = sum(_input(term, values[term.source]) for term in neuron.terms)
    assert isinstance(x, Tensor), "a neuron reads something"
    x = x + by_channel(torch.from_numpy(neuron.bias), x)
    left = 0 if before is None else (before - neuron.rest) >> neuron.shift
    charged: Tensor = neuron.rest + left + x
    assert bool((charged.abs() < 2**31).all()), "potentials of 32 bits have overflowed"
    return charged


def _input(term: Term, value: Tensor) -> Tensor:
    if term.factor:
        return (value * torch.tensor(term.factor, dtype=torch.float32)).round().long()
    return value * by_channel(torch.from_numpy(term.multiplier), value)


def by_channel(values_C: Tensor, like: Tensor) -> Tensor:
    """[C] in a shape that works on [N, C, ...]; [1] is for all channels."""
    return values_C.view(-1, *(1 for _ in like.shape[2:]))


def _layer(node: Node, fixed: FixedGraph, values: Values) -> Tensor:
    """Return the output of a node that is no neuron; integers are int64."""
    whole = fixed.whole.issuperset(node.inputs)
    x = sum(values[source] if whole else values[source].float() for source in node.inputs)
    assert isinstance(x, Tensor), "a layer reads something"
    if isinstance(node, Flatten):
        return x.flatten(1)
    if isinstance(node, Pool):
        pool = F.max_pool2d if node.largest else F.avg_pool2d
        pooled = pool(x.float(), node.kernel, node.stride, node.padding)
        return pooled.long() if node.name in fixed.whole else pooled
    assert isinstance(node, Conv | Linear), "there are no other nodes"
    if node.name in fixed.accumulators:
        assert node.quantised is not None, "it has integer weights"
        integers = torch.from_numpy(node.quantised.integers)
        # sums of integers below 2^53, exact in float64
        return _weighted(node, x.double(), integers.double(), None).long()
    weight, bias_O = (torch.from_numpy(v).float() for v in (node.weight, node.bias_O))
    return _weighted(node, x.float(), weight, bias_O)


def _weighted(node: Conv | Linear, x: Tensor, weight: Tensor, bias_O: Tensor | None) -> Tensor:
    if isinstance(node, Linear):
        return F.linear(x, weight, bias_O)
    return F.conv2d(x, weight, bias_O, node.stride, node.padding, node.dilation, node.groups)
