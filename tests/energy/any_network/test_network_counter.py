"""Networks from elsewhere against brute force: integer for integer, by layer, step and image."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.energy import foreign, zoo
from tests.energy.foreign import Noting, detailed_counter
from tser_cli.energy.any_network.layouts import AUTO
from tser_cli.energy.counts import Counts

Make = Callable[[int], Noting]
NETWORKS: dict[str, tuple[Make, tuple[int, ...], str]] = {
    "plain": (lambda t: foreign.Plain(), foreign.MAPS, ""),
    "strided": (foreign.Strided, foreign.MAPS, ""),
    "transposed": (lambda t: foreign.Transposed(), foreign.MAPS, ""),
    "1d": (lambda t: foreign.OneDimensional(), foreign.SERIES, ""),
    "3d": (lambda t: foreign.ThreeDimensional(), foreign.VOLUMES, ""),
    "sew": (lambda t: foreign.Sew(), foreign.MAPS, ""),
    "qk first": (lambda t: foreign.Attention("qk first"), foreign.TOKENS, ""),
    "kv first": (lambda t: foreign.Attention("kv first"), foreign.TOKENS, ""),
    "softmax": (lambda t: foreign.Attention("softmax"), foreign.TOKENS, ""),
    "merged": (foreign.Merged, (7, 6), ""),
    "own neurons": (foreign.Own, foreign.VECTORS, ""),
    "norse": (lambda t: foreign.Norse(), foreign.MAPS, "norse"),
    "norse recurrent": (foreign.NorseRecurrent, foreign.VECTORS, "norse"),
}


def make(name: str, timesteps: int) -> tuple[Noting, tuple[int, ...]]:
    maker, shape, library = NETWORKS[name]
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    torch.manual_seed(3)
    return maker(timesteps).eval(), shape


def by_step(net: Noting, name: str, timesteps: int, images: int) -> list[Tensor]:
    """The noted inputs of an operation, [T or 1, N, ...] each."""
    calls, form = net.noted[name], net.forms[name]
    parts = [torch.stack(xs) if form == "steps" else xs[0] for xs in zip(*calls, strict=True)]
    if form == "folded":
        inner = [len(x) // timesteps // images for x in parts]
        return [x.reshape(-1, images, n, *x.shape[1:]) for x, n in zip(parts, inner, strict=True)]
    return [x.unsqueeze(0) for x in parts] if form == "once" else parts


def is_spikes(x: Tensor) -> bool:
    return bool((x == x.round()).all())


def brute(net: Noting, name: str, parts: list[Tensor], steps: int, images: int) -> Any:
    """Accumulates with weights of one, in float64: (non-zeros, events, value), [T, N] each."""
    if len(parts) == 2:
        return brute_product(*parts, steps, images)
    x = parts[0].double()
    values = []
    for y in (x.ne(0).double(), x.abs()):
        flat = y.flatten(0, 1)
        flat = flat.flatten(0, 1) if net.forms[name] == "folded" else flat
        values.append(ones(net, name, flat).reshape(steps, images, -1).sum(-1))
    return x.ne(0).reshape(steps, images, -1).sum(-1), *values


def ones(net: Noting, name: str, x: Tensor) -> Tensor:
    name = name.partition("#")[0]
    parameter = dict(net.named_parameters()).get(name)
    if parameter is not None:
        weight = torch.ones_like(parameter, dtype=torch.float64)
        if parameter.dim() == 2:
            return F.linear(x, weight)
        return F.conv1d(x, weight, stride=2, padding=1)
    module: Any = net.get_submodule(name)
    # torch's own class of it, whatever makes its weights or folds its time.
    twin: Any = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules"))
    copy: Any = nn.Module.__new__(twin)
    copy.__dict__.update(module.__dict__)
    copy.__dict__.pop("weight", None)
    copy._parameters = {"weight": torch.ones_like(module.weight, dtype=torch.float64), "bias": None}
    result: Tensor = twin.forward(copy, x)
    return result


def brute_product(a: Tensor, b: Tensor, steps: int, images: int) -> Any:
    spikes = [is_spikes(a), is_spikes(b)]
    nonzero = [x.ne(0).reshape(steps, images, -1).sum(-1) for x in (a, b)]
    results = []
    for change in (lambda x: x.ne(0).double(), lambda x: x.double().abs()):
        one, other = (
            change(x) if spike else torch.ones_like(x, dtype=torch.float64)
            for x, spike in zip((a, b), spikes, strict=True)
        )
        results.append((one @ other).reshape(steps, images, -1).sum(-1))
    used = sum(n for n, spike in zip(nonzero, spikes, strict=True) if spike)
    return used, *(results if any(spikes) else [r * 0 for r in results])


def check(net: Any, counts: Counts, timesteps: int, images: int) -> None:
    assert sorted(c.layer.name for c in counts.layers) == sorted(net.noted)
    for counted in counts.layers:
        name = counted.layer.name
        parts = by_step(net, name, timesteps, images)
        steps = len(parts[0])
        nonzero, events, value = brute(net, name, parts, steps, images)
        assert counted.executed_T.tolist() == [1] * steps + [0] * (timesteps - steps), name
        real = counted.layer.input_kind == "real"
        assert real == (not any(is_spikes(part) for part in parts)), name
        # A layer that pads with what it is fed with meets that several times.
        padded = getattr(dict(net.named_modules()).get(name), "padding_mode", "zeros") != "zeros"
        if (len(parts) == 1 or not real) and not padded:
            assert np.array_equal(counted.nonzero_TI[:steps], nonzero), name
        if not real:
            assert np.array_equal(counted.events_TI[:steps], events), name
            assert np.array_equal(counted.value_TI[:steps], value), name
        dense = brute(net, name, [torch.ones_like(part) for part in parts], steps, images)[2]
        assert counted.layer.macs == dense[0, 0], name


@pytest.mark.parametrize(("timesteps", "images"), [(2, 5), (4, 1), (1, 3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_equals_brute_force(name: str, timesteps: int, images: int) -> None:
    net, shape = make(name, timesteps)
    counter = detailed_counter(net, torch.rand(images, *shape) * 2, timesteps)
    check(net, counter.counts(), timesteps, images)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layout_is_found_and_spikes_reach_every_layer(name: str) -> None:
    net, shape = make(name, 4)
    counter = detailed_counter(net, torch.rand(4, *shape) * 2, 4, found=AUTO)
    counts = counter.counts()
    assert counter.plan is not None
    assert counter.plan.layout == net.layout
    check(net, counts, 4, 4)
    # Networks that stayed silent would prove nothing.
    assert all(counted.nonzero_TI.any() for counted in counts.layers)
    assert any(counted.value_TI.any() for counted in counts.layers)
    spikes = [neuron.spikes_TI for neuron in counts.neurons]
    assert all(sent_TI is not None and sent_TI.any() for sent_TI in spikes)
    assert counts.neurons or name == "own neurons"


# which of them are shown frames of events
EVENTS = ("student ms_resnet_tiny", "student sdt_tiny")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_network_of_others_equals_brute_force(name: str) -> None:
    theirs, timesteps, images = zoo.ZOO[name], 3, 2
    pytest.importorskip(theirs.library)
    torch.manual_seed(0)
    net, x = theirs.make(timesteps), torch.rand(images, *theirs.shape)
    if name in EVENTS:  # counts that differ from step to step
        x = torch.randint(0, 4, (images, timesteps, *theirs.shape)).float()
    if name in zoo.SPIKINGJELLY:
        zoo.lively(net, x.expand(timesteps, *x.shape))
    noted = zoo.noted(net.eval(), theirs.layout, x, timesteps, theirs.loops)
    # Finding the layout takes as long again as all else.
    found = AUTO if theirs.library != "torch" or "resnet" in name else ""
    counter = detailed_counter(noted, x, timesteps, found=found)
    counts = counter.counts()
    assert counter.plan is not None and counter.plan.layout == theirs.layout
    check(noted, counts, timesteps, images)
    if name in EVENTS:
        first = counts.layers[0]
        assert (first.layer.input_kind, first.executed_T.tolist()) == ("sums", [1] * timesteps)
        assert (first.value_TI > first.events_TI).all()
    fed = [counted for counted in counts.layers if counted.nonzero_TI.any()]
    assert len(fed) >= len(counts.layers) - 1
    assert any(counted.value_TI.any() for counted in fed)
