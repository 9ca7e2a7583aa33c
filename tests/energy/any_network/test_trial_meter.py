"""The meter of networks that declare nothing: the counter's integers, and their gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from tests.energy import zoo
from tser_cli.base.errors import TserError
from tser_cli.energy.any_network.network_counter import count_operations
from tser_cli.energy.any_network.trial_meter import TrialMeter
from tser_cli.energy.meter import EnergyMeter
from tser_cli.engine.runs.networks import counts_at_random, meter_of
from tser_cli.models.base import OwnNetwork, build_model
from tser_cli.settings.config import NeuronConfig

SHAPE = (1, 8, 8)
SLOW = pytest.mark.slow


# a network with products of attention, and one shown frames; the others are alike, and dear
OFTEN = ("qkformer_tiny", "frames")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow)
        for name in (*zoo.STUDENTS, "frames")
    ],
)
def test_it_gives_what_the_counter_counts(name: str) -> None:
    model: Any = zoo.student("sdt_tiny" if name == "frames" else name)
    model.eval()
    images_NCHW, shape = torch.randn(3, *SHAPE), SHAPE
    if name == "frames":  # counts, which the stem adds
        images_NCHW, shape = torch.randint(0, 4, (3, 2, *SHAPE)).float(), (2, *SHAPE)
    counts = counts_at_random(model, shape, 2)
    meter = meter_of(model, counts)
    assert isinstance(meter, TrialMeter)
    with meter:
        logits_TNK = model(images_NCHW, 2)
    all_of_them, narrow = meter.take().detach().tolist()
    with torch.no_grad(), count_operations(model, "inside", 2) as counter:
        assert torch.equal(model(images_NCHW, 2), logits_TNK)
    counted = [(int(one.value_TI.sum()), one.layer.narrow) for one in counter.counts().layers]
    assert all_of_them == sum(value for value, _ in counted)
    assert counts.layers[0].layer.accumulates == (name == "frames")
    assert narrow == sum(value for value, fits in counted if fits)
    with meter:
        model.train()(images_NCHW, 2)
    meter.take()[0].backward()
    touched = [key for key, weight in model.named_parameters() if weight.grad is not None]
    assert any("attn" in key for key in touched) or name == "ms_resnet_tiny"
    assert len(touched) > 0.75 * len(list(model.parameters()))  # all but what the head alone reads


def test_price_and_gradient_are_those_of_declared_networks() -> None:
    torch.manual_seed(0)
    model = build_model("sew_resnet20", neuron=NeuronConfig(), num_classes=10, **zoo.SIZE)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.bias, 0.3, 0.7)
    kinds = model.input_kinds()
    assert kinds is not None
    images_NCHW, found = torch.randn(4, *SHAPE), []
    for meter in (EnergyMeter(model, kinds), TrialMeter(model, counts_at_random(model, SHAPE, 2))):
        model.zero_grad()
        with meter:
            model(images_NCHW, 2)
        total = meter.take()
        total[0].backward()
        found.append((total.tolist(), model.conv1.weight.grad.clone()))
    assert found[0][0] == found[1][0]
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4)


def test_an_operation_that_does_not_run_is_named() -> None:
    model: Any = zoo.student("spikformer_tiny")
    meter = meter_of(model, counts_at_random(model, SHAPE, 2))
    model.blocks = nn.ModuleList()
    with meter:
        model(torch.randn(2, *SHAPE), 2)
    with pytest.raises(TserError, match=r"layer blocks\.0\..* did not run in this pass"):
        meter.take()


class Ternary(nn.Module):
    """Two neurons of opposite sign drive the head with -1, 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 5)
        self.up, self.down = (neuron.IFNode(step_mode="m") for _ in range(2))

    def forward(self, images_NCHW: Tensor, timesteps: int) -> Tensor:
        current_TNC = (3 * self.first(images_NCHW.flatten(1))).expand(timesteps, -1, -1)
        logits_TNK: Tensor = self.head(self.up(current_TNC) - self.down(-current_TNC))
        return logits_TNK


def test_a_spike_of_minus_one_costs_what_a_spike_does_and_a_silent_neuron_may_learn() -> None:
    torch.manual_seed(0)
    model = OwnNetwork(Ternary(), spiking=True)
    images_NCHW = torch.randn(4, *SHAPE)
    meter = meter_of(model, counts_at_random(model, SHAPE, 2))
    spikes: list[Tensor] = []
    model.module.head.register_forward_pre_hook(lambda module, args: spikes.append(args[0]))
    with meter:
        model(images_NCHW, 2)
    total = meter.take()
    spikes[0].retain_grad()
    total[0].backward()
    assert spikes[0].min() == -1
    assert total[0].item() == 5 * int(spikes[0].abs().sum())
    assert spikes[0].grad is not None
    assert torch.equal(spikes[0].grad, torch.where(spikes[0] < 0, -5.0, 5.0))


@pytest.mark.parametrize("name", ["spikformer_tiny", pytest.param("qkformer_tiny", marks=SLOW)])
def test_blocks_computed_again_have_the_same_gradient(name: str) -> None:
    model: Any = zoo.student(name)
    images_NCHW, found = torch.randn(3, *SHAPE), []
    meter = meter_of(model, counts_at_random(model, SHAPE, 2))
    for model.save_memory in (False, True):
        model.zero_grad()
        with meter:
            logits_TNK = model.train()(images_NCHW, 2)
        (logits_TNK.square().sum() + 1e-6 * meter.take()[0]).backward()
        found.append([w.grad.clone() for w in model.parameters() if w.grad is not None])
    assert len(found[0]) == len(found[1])
    assert all(map(torch.equal, *found))
