"""What must not matter to the counts of a network from elsewhere, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn import functional as F

from tests.energy import foreign
from tests.energy.foreign import assert_same
from tser_cli.base.errors import TserError
from tser_cli.energy.any_network.layouts import present
from tser_cli.energy.any_network.network_counter import as_declared, count_operations
from tser_cli.energy.counter import counting
from tser_cli.energy.counts import Counts
from tser_cli.models.base import Classifier
from tser_cli.models.integers import quantise


def counts_of(net: Any, batches: list[Tensor], layout: str, timesteps: int) -> Counts:
    """Batches are [T, N, ...] for time-first, [N, ...] for the others."""
    with torch.no_grad(), count_operations(net, layout, timesteps) as counter:
        for batch in batches:
            if layout == "time-first":
                net(batch)
            else:
                present(layout, batch, timesteps, net).call(net)
    return counter.counts()


def exact_plain() -> foreign.Plain:
    """The plain network with weights whose sums are exact in any order."""
    torch.manual_seed(5)
    net = foreign.Plain().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randint(-20, 24, weight.shape) / 64)
    return net


def exact_images(*shape: int) -> Tensor:
    return torch.randint(0, 32, shape) / 16


def test_counts_do_not_depend_on_the_batch_split_nor_on_what_ran_before() -> None:
    net, x = exact_plain(), exact_images(4, 7, 2, 6, 6)
    whole = counts_of(net, [x], "time-first", 4)
    assert_same(counts_of(net, list(x.split([4, 2, 1], dim=1)), "time-first", 4), whole)
    net(x)
    assert_same(counts_of(net, [x], "time-first", 4), whole)


def test_counts_do_not_depend_on_mode_compiling_or_memory_format() -> None:
    net, x = exact_plain(), exact_images(4, 4, 2, 6, 6)
    plain = counts_of(net, [x], "time-first", 4)
    with torch.inference_mode(), count_operations(net) as counter:
        net(x)
    assert_same(counter.counts(), plain)
    compiled: Any = torch.compile(net, backend="eager")
    with torch.no_grad(), count_operations(compiled, "time-first") as counter:
        compiled(x)
    assert_same(counter.counts(), plain)
    with torch.enable_grad(), count_operations(net, "time-first") as counter:
        net(x).sum().backward()
    assert_same(counter.counts(), plain)
    assert_same(counts_of(net.to(memory_format=torch.channels_last), [x], "time-first", 4), plain)


def test_the_same_network_counts_the_same_in_three_layouts() -> None:
    def make(mode: str) -> nn.Module:
        torch.manual_seed(2)
        net = nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1),
            neuron.IFNode(v_threshold=0.3),
            layer.Flatten(),
            layer.Linear(144, 6),
            neuron.IFNode(v_threshold=0.2),
            layer.Linear(6, 2),
        )
        functional.set_step_mode(net, mode)
        return net.eval()

    images = exact_images(4, 2, 6, 6)
    one = counts_of(make("m"), [images.expand(4, *images.shape)], "time-first", 4)
    other = counts_of(make("s"), [images], "stepwise", 4)
    assert_same(one, other)
    assert [neurons.updates for neurons in one.neurons] == [144, 6]


@pytest.mark.parametrize("name", ["sew_resnet20", "four bits"])
def test_a_network_of_our_own_counts_as_it_declares(
    lively: Callable[..., Classifier], name: str
) -> None:
    model = quantise(lively("resnet20"), 4) if name == "four bits" else lively(name)
    kinds, images = model.input_kinds() or {}, torch.randn(2, 3, 8, 8)
    with torch.no_grad(), counting(model, kinds) as hooks:
        model(images, timesteps=3)
    with torch.no_grad(), count_operations(model, timesteps=3, detailed=True) as found:
        model(images, timesteps=3)
    assert found.plan is not None
    assert found.plan.layout == "inside"
    assert_same(as_declared(found.counts(), model, kinds), hooks.counts())
    wrong = {**kinds, "layer1.0.conv1": "spikes", "fc": "spikes"}
    with pytest.raises(TserError, match="layer fc is declared to be fed with spikes"):
        as_declared(found.counts(), model, wrong)


def test_hooks_count_the_zeros_that_an_ann_meets() -> None:
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.ReLU())
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(torch.rand_like(weight) > 0.2)
    kinds, images = dict.fromkeys(("0", "2", "5"), "real"), torch.randn(3, 1, 8, 8).relu()
    with torch.no_grad(), counting(model, kinds, detailed=True) as hooks:
        model(images)
    with torch.no_grad(), count_operations(model, "inside", 1, detailed=True) as found:
        model(images)
    for one, other in zip(hooks.counts().layers, found.counts().layers, strict=True):
        assert one.effective_TI is not None
        assert other.effective_TI is not None
        assert np.array_equal(one.effective_TI, other.effective_TI)
        assert (one.effective_TI < one.layer.macs).all()


def test_layers_in_place_and_shared_by_two_places_in_a_loop() -> None:
    class Shared(foreign.Noting):
        layout, form = "inside", "steps"

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(5, 5), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out = x
            for _ in range(3):
                (first,) = self.note("fc", (x > 0.5).float())
                (second,) = self.note("fc#2", (self.act(self.fc(first)) > 0.1).float())
                out = self.fc(second).add_(1)
            return out

    net, x = Shared().eval(), torch.rand(3, 5)
    counts = counts_of(net, [x], "inside", 3)
    assert [counted.layer.name for counted in counts.layers] == ["fc", "fc#2"]
    for counted in counts.layers:
        noted = torch.stack([xs[0] for xs in net.noted[counted.layer.name]])
        assert np.array_equal(counted.value_TI, noted.sum(-1).long() * 5)


def test_signed_spikes_and_their_sums_cost_their_magnitude() -> None:
    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x.sign()) + self.b(x.round())
            return y

    x = torch.tensor([[-1.0, 2.0, 0.0, -3.0], [1.0, 0.0, 0.0, 1.0]])
    one, two = counts_of(Signed(), [x], "inside", 1).layers
    assert (one.layer.input_kind, two.layer.input_kind) == ("signed", "sums")
    assert one.value_TI.tolist() == one.events_TI.tolist() == [[6, 4]]
    assert (two.value_TI.tolist(), two.events_TI.tolist()) == ([[12, 4]], [[6, 4]])


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 5), (3, 5, 2)), ((3, 1, 4, 5), (3, 6, 5, 2)), ((3, 4, 5), (5, 2)), ((3, 4, 5), (3, 5))],
    ids=str,
)
def test_products_broadcast_as_torch_does(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    class Multiply(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(5, 2))

        def forward(self, x: Tensor) -> Tensor:
            # [N, ...] of spikes, from one number an image.
            a = x.reshape(-1, *[1] * (len(left) - 1)).gt(0.3).float().expand(-1, *left[1:])
            if right == (5, 2):
                return a @ self.weight
            b = torch.ones(len(x), *right[1:])
            if len(right) == 2:
                return torch.einsum("nij,nj->ni", a, b)
            return (a.unsqueeze(1) @ b) if len(left) == 2 else a @ b

    (counted,) = counts_of(Multiply(), [torch.tensor([0.1, 0.5, 0.9])], "inside", 1).layers
    assert counted.layer.product is not None
    # The first image is below the threshold; the others are ones throughout.
    assert counted.value_TI[0].tolist() == [0, *[prod(counted.layer.product)] * 2]
    dense = torch.ones(1, *left[1:]) if len(left) > 2 else torch.ones(1, 1, *left[1:])
    other = torch.ones(right if right == (5, 2) else (1, *right[1:]))
    flop = (dense @ (other.unsqueeze(-1) if right == (3, 5) else other)).sum()
    assert counted.layer.macs == flop


def test_a_layer_that_meets_other_kinds_in_other_batches_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad(), count_operations(net, "inside", 1) as counter:
        net(torch.eye(3))
        net(torch.zeros(2, 3))
        net(torch.rand(4, 3))
    counts = counter.counts()
    assert counter.differing() == {"0": {"spikes": 2, "real": 1}}
    assert counts.layers[0].layer.input_kind == "real"
    assert not counts.layers[0].value_TI.any()


def test_what_is_not_counted_is_known() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()).eval()
    with torch.no_grad(), count_operations(net, "inside", 1) as counter:
        net(torch.rand(3, 4))
    assert counter.plan is not None
    assert counter.plan.survey.uncounted == {"native_batch_norm": 8, "tanh": 8}


def test_casts_and_look_ups_are_no_arithmetic() -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.table((x > 0.5).long()).sum(1))
            return y

    net = Looked().eval()
    with torch.no_grad(), count_operations(net, "inside", 1) as counter:
        net(torch.rand(3, 4))
    assert counter.plan is not None
    assert counter.plan.survey.uncounted == {"gt": 2 * 4, "sum": 2 * 4 * 3}


class Wrong(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.fc, self.lstm = nn.Linear(4, 4), nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.scripted = torch.jit.trace(nn.Linear(4, 4), torch.rand(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "recurrent":
            return self.lstm(x.unsqueeze(0))[0].squeeze(0)
        if self.how == "attention":
            return self.attention(*[x.unsqueeze(1)] * 3)[0]
        if self.how == "scripted":
            return self.scripted(x)
        if self.how == "images":
            return x @ x.T
        if self.how == "one by one":
            return torch.stack([self.fc(row) for row in x])
        if self.how == "three":
            return torch.einsum("ni,nj,nk->nk", x, x, x)
        return x + 1


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("recurrent", "lstm can't be counted"),
        ("attention", "attention can't be counted"),
        ("scripted", "computes addmm in compiled"),
        ("images", "images"),
        ("one by one", "one by one"),
        ("three", "products of two"),
        ("nothing", "nothing to count"),
    ],
)
def test_what_cannot_be_counted_is_refused(how: str, message: str) -> None:
    net = Wrong(how).eval()
    with pytest.raises(TserError, match=message), count_operations(net, "inside", 1):
        net(torch.rand(3, 4))
    assert not net._forward_pre_hooks


@pytest.mark.parametrize(
    ("layout", "timesteps", "shape", "message"),
    [
        ("time-fist", 0, (4, 2, 2, 6, 6), "did you mean"),
        ("time-first", 3, (4, 2, 2, 6, 6), "can't be time-first"),
        ("folded", 0, (8, 2, 6, 6), "say timesteps"),
        ("auto", 4, (2, 3, 6, 6), "layout"),
        ("time-first", 0, (4, 2, 5, 6, 6), "takes 2 channels"),
    ],
)
def test_calls_that_do_not_fit_are_refused(
    layout: str, timesteps: int, shape: tuple[int, ...], message: str
) -> None:
    net = foreign.Plain().eval()
    with pytest.raises(TserError, match=message), count_operations(net, layout, timesteps):
        net(torch.rand(shape))


def test_time_that_is_not_there_or_not_whole_is_refused() -> None:
    with pytest.raises(TserError, match="4 time steps by itself, not 3"):
        counts_of(foreign.Own(4).eval(), [torch.rand(2, 5) * 2], "inside", 3)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).eval()
    with pytest.raises(TserError, match="no notice of time"), count_operations(net, timesteps=4):
        net(torch.rand(4, 2, 6, 6))
    stepwise: Any = foreign.Transposed().eval()
    counted = count_operations(stepwise, "stepwise", 4)
    with pytest.raises(TserError, match="all time steps"), torch.no_grad(), counted as counter:
        stepwise(torch.rand(2, 2, 6, 6))
        counter.counts()


def test_images_that_are_mixed_are_refused() -> None:
    class OverBatch(foreign.Plain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.act1(self.conv1(x).flatten(0, 1)).unflatten(0, x.shape[:2])
            z: Tensor = self.fc(self.act2(self.conv2(y)).flatten(2))
            return z

    torch.manual_seed(1)
    net = OverBatch().eval()
    with pytest.raises(TserError, match=r"act1.*images are mixed"):
        counts_of(net, [torch.rand(4, 3, 2, 6, 6) * 2], "time-first", 4)


def test_spikingjelly_s_form_is_refused_by_declared_counting() -> None:
    kinds = {"conv1": "real", "conv2": "spikes", "fc": "spikes"}
    net = foreign.Plain().eval()
    with pytest.raises(TserError, match="count_operations"), counting(net, kinds):
        net(torch.rand(4, 5, 2, 6, 6))

    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor, timesteps: int) -> Tensor:
            y: Tensor = self.fc(x.expand(timesteps, *x.shape))
            return y

    model, said = Folding(), r"fc met an input of \(4, 4, 4\)"
    with pytest.raises(TserError, match=said), counting(model, {"fc": "real"}):
        model(torch.rand(4, 4), timesteps=4)


def test_functional_convolutions_of_every_kind_are_seen() -> None:
    def around(x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1), mode="circular")

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.rand(3, 2, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            first = F.conv2d(around(x), self.w)
            same = F.conv2d(x, self.w * 2, padding="same")
            return first + same + F.conv2d(input=x, weight=self.w, padding=1)

    x, ones = (torch.rand(2, 2, 5, 5) > 0.5).float(), torch.ones(3, 2, 3, 3)
    counts = counts_of(Functional(), [x], "inside", 1)
    found = {c.layer.name: c.value_TI[0].tolist() for c in counts.layers}
    zeros = F.conv2d(x, ones, padding=1).sum((1, 2, 3)).tolist()
    circular = F.conv2d(around(x), ones).sum((1, 2, 3)).tolist()
    assert found == {"(network)": zeros, "w": circular, "w#2": zeros}


def test_a_head_on_the_mean_of_all_steps_is_no_stem() -> None:
    class Averaged(foreign.Plain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.act2(self.conv2(self.act1(self.conv1(x))))
            z: Tensor = self.fc(y.flatten(2).mean(0, keepdim=True))
            return z.squeeze(0)

    torch.manual_seed(1)
    net = Averaged().eval()
    counts = counts_of(net, [torch.rand(4, 3, 2, 6, 6) * 2], "time-first", 4)
    assert [counted.layer.name for counted in counts.stem] == ["conv1"]
    assert not counts.stem_once
    assert counts.layers[-1].executed_T.tolist() == [1, 0, 0, 0]


def test_a_layer_that_meets_zeros_alone_is_told_apart() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Threshold(1e9, 0.0), nn.Linear(3, 2)).eval()
    with torch.no_grad(), count_operations(net, "inside", 1) as counter:
        net(torch.rand(4, 3))
    assert counter.kinds() == {"0": "real", "2": "zeros alone"}
    assert [x.layer.input_kind for x in counter.counts().layers] == ["real", "spikes"]
    with torch.no_grad(), count_operations(net, "inside", 1) as counter:
        counter.declared = {"2": "real"}
        net(torch.rand(4, 3))
    assert [x.layer.input_kind for x in counter.counts().layers] == ["real", "real"]


def test_a_step_is_not_taken_for_an_image() -> None:
    torch.manual_seed(3)
    net = foreign.Transposed().eval()
    with pytest.raises(TserError, match="has spiking neurons"), count_operations(net):
        net(torch.rand(2, 2, 6, 6) * 2)
    with torch.no_grad(), count_operations(net, timesteps=1) as counter:
        net(torch.rand(2, 2, 6, 6) * 2)
    assert counter.counts().timesteps == 1
