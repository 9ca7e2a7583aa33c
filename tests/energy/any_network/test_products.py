"""Products of all kinds that networks have: counted, named, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tser_cli.base.errors import TserError
from tser_cli.energy.any_network.layouts import present
from tser_cli.energy.any_network.network_counter import TrialCounter, count_operations
from tser_cli.energy.any_network.products import reduced

SPIKING = 2  # images of ones: every one of the 16 neurons fires at each step


class Net(nn.Module):
    """Sixteen neurons that fire at each step, and what makes of their spikes [N, 16] an output."""

    def __init__(self, then: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.n, self.then = neuron.IFNode(), then
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.then(self, self.n(x))
        return made


def ran(net: nn.Module, timesteps: int = 1, features: int = 16) -> TrialCounter:
    torch.manual_seed(0)
    shown = present("stepwise", torch.ones(SPIKING, features), timesteps, net)
    with torch.no_grad(), count_operations(net.eval(), "stepwise", timesteps) as counter:
        shown.call(net)
    return counter


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def lora(net: Any, spikes: Tensor) -> Tensor:
    return F.linear(spikes, net.base.weight + net.b @ net.a, net.base.bias)


LINEAR: Any = {"then": lambda net, spikes: net.fc(spikes)}
WEIGHTS_ALONE: dict[str, tuple[Callable[[], Net], set[str]]] = {
    "lora": (
        lambda: Net(lora, base=nn.Linear(16, 5), a=parameter(2, 16), b=parameter(5, 2)),
        {"b"},
    ),
    "spectral norm": (
        lambda: Net(**LINEAR, fc=parametrizations.spectral_norm(nn.Linear(16, 5))),
        {"fc.parametrizations.weight.0", "fc.parametrizations.weight.original"},
    ),
    "orthogonal": (
        lambda: Net(**LINEAR, fc=parametrizations.orthogonal(nn.Linear(16, 5))),
        {"fc.parametrizations.weight.0"},
    ),
    "weight norm": (
        lambda: Net(**LINEAR, fc=parametrizations.weight_norm(nn.Linear(16, 5))),
        set(),
    ),
    "network of a table": (
        lambda: Net(
            lambda net, spikes: F.linear(spikes, net.make(net.table)),
            make=nn.Linear(3, 16),
            table=parameter(5, 3),
        ),
        {"make"},
    ),
}


@pytest.mark.parametrize(
    ("name", "timesteps"), [("lora", 1), *((name, 3) for name in WEIGHTS_ALONE)]
)
def test_products_of_weights_alone_are_named_and_not_counted(name: str, timesteps: int) -> None:
    make, named = WEIGHTS_ALONE[name]
    counter = ran(make(), timesteps)
    (layer,) = counter.counts().layers
    # 16 spikes x 5 outputs at each step, whatever the weights are made of.
    assert layer.events_TI.tolist() == [[80, 80]] * timesteps
    assert layer.neuron_updates == 16
    assert counter.weights_alone == named


def test_what_a_batch_has_in_common_is_no_weight() -> None:
    """A mean over images has no axis of them, and yet belongs to them."""
    net = Net(
        lambda net, s: net.fc(s) + net.gate(s.mean(0)), fc=nn.Linear(16, 5), gate=nn.Linear(16, 5)
    )
    with pytest.raises(TserError, match=r"gate: .* changes with another image"):
        ran(net)


def test_weights_alone_are_nothing_to_count() -> None:
    with pytest.raises(TserError, match="nothing to count"):
        ran(Net(lambda net, spikes: spikes + (net.a @ net.a)[0], a=parameter(16, 16)))


SEEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "sparse.mm": lambda net, spikes: torch.sparse.mm(spikes.to_sparse(), net.w),
    "sparse.mm, csr": lambda net, spikes: torch.sparse.mm(spikes.to_sparse_csr(), net.w),
    "sparse matmul": lambda net, spikes: spikes.to_sparse() @ net.w,
    "sparse weights": lambda net, spikes: torch.sparse.mm(net.w.t().to_sparse(), spikes.t()).t(),
    "sparse.addmm": lambda net, spikes: torch.sparse.addmm(
        torch.zeros(len(spikes), 50), spikes.to_sparse(), net.w
    ),
    "transposed weights of 1": lambda net, spikes: spikes @ net.w.t().contiguous().t(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize(
    ("name", "weight"), [("sparse.mm", 0.0), *((n, w) for n in SEEN for w in (1.0, 2.0))]
)
def test_sparse_products_count_as_dense_ones(name: str, weight: float) -> None:
    """Sixteen spikes x 50 outputs, whatever the weights are: a 2 is no sum, a 0 saves nothing."""
    net = Net(SEEN[name], w=nn.Parameter(torch.full((16, 50), weight)))
    (layer,) = ran(net, 2).counts().layers
    assert layer.events_TI.tolist() == [[800, 800]] * 2
    assert layer.value_TI.tolist() == [[800, 800]] * 2


def test_integer_products_count_their_spikes() -> None:
    net = Net(lambda net, spikes: torch._int_mm(spikes.to(torch.int8), net.w.to(torch.int8)))
    net.register_buffer("w", torch.full((16, 24), 3.0))
    shown = present("stepwise", torch.ones(32, 16), 1, net)
    with torch.no_grad(), count_operations(net, "stepwise", 1) as counter:
        shown.call(net)
    (layer,) = counter.counts().layers
    assert layer.value_TI.tolist() == [[16 * 24] * 32]


def test_a_module_that_says_it_has_no_products_and_has_one_is_noticed() -> None:
    net = Net(**LINEAR, fc=nn.Linear(16, 5))
    net.fc.without_products = True
    with pytest.raises(TserError, match="fc ran 0 times in a batch, not 1"):
        ran(net).counts()


@pytest.mark.parametrize("most", [2.0**22 - 1, 2.0**23 + 1, 0.1])
def test_products_are_summed_without_rounding(most: float) -> None:
    x_NKP = torch.full((2, 3, 4), most)
    summed_NK = reduced(x_NKP, "NKP", "NK", most)
    assert summed_NK.double().equal(
        torch.full((2, 3), 4 * float(x_NKP[0, 0, 0]), dtype=torch.double)
    )


class Recurrent(nn.Module):
    """A cell that spikes drive; the caller hands its state on. `met`: its inputs and states."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.n, self.cell, self.met = neuron.IFNode(v_threshold=0.7), cell, list[Any]()

    def forward(self, x: Tensor, state: Any = None) -> Any:
        spikes = self.n(x)
        made = self.cell(spikes, state)
        hidden = made[0] if isinstance(made, tuple) else made
        self.met.append((spikes, hidden))
        return hidden, made


@pytest.mark.parametrize(
    ("cell", "gates"),
    [
        (nn.LSTMCell(5, 3), 4),
        (nn.GRUCell(5, 3, bias=False), 3),
        (nn.RNNCell(5, 3), 1),
        (nn.RNNCell(5, 3, nonlinearity="relu"), 1),
    ],
    ids=str,
)
def test_a_cell_is_two_layers_that_read_its_input_and_its_state(cell: Any, gates: int) -> None:
    net, x = Recurrent(cell).eval(), torch.rand(4, 5)
    shown = present("stepwise", x, 3, net)
    with torch.no_grad(), count_operations(net, "stepwise", 3, detailed=True) as counter:
        shown.call(net)
    spikes, hidden = (torch.stack(met) for met in zip(*net.met, strict=True))
    reads, keeps = counter.counts().layers
    assert (reads.layer.name, keeps.layer.name) == ("cell.weight_ih", "cell.weight_hh")
    assert reads.value_TI.tolist() == (spikes.sum(-1).long() * gates * 3).tolist()
    assert (keeps.layer.input_kind, keeps.layer.macs) == ("real", 3 * gates * 3)
    assert keeps.step_macs.tolist() == [keeps.layer.macs] * 3
    # The first state is zeros.
    assert keeps.nonzero_TI.tolist() == [[0] * 4, *hidden[:2].ne(0).sum(-1).tolist()]


def test_snntorch_s_lstm_neurons_count_as_their_cell() -> None:
    snntorch = pytest.importorskip("snntorch")
    lstm = snntorch.SLSTM(16, 16, init_hidden=True, threshold=0.05)
    counts = ran(
        Net(lambda net, spikes: net.fc(net.lstm(spikes)), lstm=lstm, fc=nn.Linear(16, 2)), 3
    )
    found = {layer.layer.name: layer for layer in counts.counts().layers}
    assert found["lstm.lstm_cell.weight_ih"].value_TI.tolist() == [[16 * 4 * 16] * 2] * 3
    assert found["lstm.lstm_cell.weight_hh"].step_macs.tolist() == [16 * 4 * 16] * 3
    assert found["fc"].layer.input_kind == "spikes"
    assert [neurons.type for neurons in counts.counts().neurons] == ["IFNode", "SLSTM"]


HIDDEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "embedding bag": (
        lambda net, s: F.embedding_bag(s.long(), net.w, mode="sum"),
        "_embedding_bag",
    ),
    "broadcast, sum": (lambda net, s: (s[:, None] * net.w.t()).sum(-1), "broadcasting and sums"),
    "broadcast, mean": (
        lambda net, s: torch.mul(s.unsqueeze(-1), net.w).mean(dim=1),
        "broadcasting and sums",
    ),
    "broadcast, viewed": (
        lambda net, s: (s[:, None] * net.w.t()).reshape(len(s), 50, 4, 4).sum((2, 3)),
        "broadcasting and sums",
    ),
    "vmap": (lambda net, s: torch.vmap(lambda row: row @ net.w)(s), "torch.func"),
    "one output": (lambda net, s: (s * net.w[:, 0]).sum(-1), "by elements with a weight and sums"),
    "one output, averaged": (
        lambda net, s: (net.w.t()[:1] * s).mean(1, keepdim=True),
        "by elements with a weight and sums",
    ),
    "numpy": (lambda net, s: torch.from_numpy(s.numpy() @ net.w.detach().numpy()), "with NumPy"),
    "asarray": (lambda net, s: torch.from_numpy(np.asarray(s) @ np.ones((16, 2), "f")), "NumPy"),
    "tensordot": (lambda net, s: torch.tensordot(s, net.w, 1), "computes mm"),
    "distances": (lambda net, s: torch.cdist(s, net.w.t()), "_euclidean_dist"),
    "two sparse": (
        lambda net, s: torch.sparse.sampled_addmm(
            s.to_sparse_csr(), torch.ones(len(s), 3), torch.ones(3, 16)
        ).to_dense(),
        "sparse_sampled_addmm",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", HIDDEN)
def test_products_that_cannot_be_seen_are_refused_by_name(name: str) -> None:
    then, what = HIDDEN[name]
    with pytest.raises(TserError, match=f"can't be counted: .*{what}"):
        ran(Net(then, w=parameter(16, 50)))


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_deformable_products_are_refused_by_name() -> None:
    linear = torch.ao.nn.quantized.dynamic.Linear(16, 5)  # type: ignore[no-untyped-call]
    with pytest.raises(TserError, match="linear_dynamic"):
        ran(Net(**LINEAR, fc=linear))
    vision = pytest.importorskip("torchvision")

    def deformed(net: Any, spikes: Tensor) -> Tensor:
        maps, offset = spikes.reshape(-1, 1, 4, 4), torch.zeros(len(spikes), 18, 2, 2)
        made: Tensor = vision.ops.deform_conv2d(maps, offset, torch.ones(3, 1, 3, 3))
        return made

    with pytest.raises(TserError, match="deform_conv2d"):
        ran(Net(deformed))


def test_products_by_element_and_their_sums_are_no_matrix_product() -> None:
    """Gates over channels and masks are listed with their share, as they were."""

    def gated(net: Any, spikes: Tensor) -> Tensor:
        maps = net.fc(spikes).unsqueeze(-1) * net.outer
        made: Tensor = (maps * net.gate[:, None]).sum(-1)
        return made

    net = Net(gated, fc=nn.Linear(16, 5), gate=parameter(5), outer=parameter(1, 4))
    assert [layer.layer.name for layer in ran(net).counts().layers] == ["fc"]
