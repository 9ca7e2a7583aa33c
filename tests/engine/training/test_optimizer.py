"""Optimizers, the learning rate, and what processes share; `tests/faults` has the rest."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.engine.conftest import SPEC, make_config
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.training import optimizer
from tser_cli.engine.training.optimizer import (
    QuickSGD,
    lr_factor,
    make_optimizer,
    parameter_groups,
    share_gradients,
    share_statistics,
)
from tser_cli.models.base import Classifier
from tser_cli.settings.config import OptimizerConfig, ScheduleConfig


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def test_only_conv_and_linear_weights_decay() -> None:
    net = small_net()
    decayed, plain = parameter_groups([net], 0.01)
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3), (3, 2)]  # type: ignore[attr-defined]
    assert len(plain["params"]) == 4  # type: ignore[arg-type]  # two biases, norm weight and bias
    assert decayed["weight_decay"] == 0.01
    assert plain["weight_decay"] == 0.0


@pytest.mark.parametrize(("name", "kind"), [("sgd", QuickSGD), ("adamw", torch.optim.AdamW)])
def test_optimizer_of_each_name(name: str, kind: type) -> None:
    settings = OptimizerConfig.model_validate({"name": name, "lr": 0.25})
    optimizer = make_optimizer([small_net()], settings)
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_fused_sgd_gives_the_same_weights_in_any_memory_order(
    order: torch.memory_format, momentum: float
) -> None:
    def trained(fused: bool) -> tuple[list[Tensor], torch.optim.Optimizer]:
        torch.manual_seed(0)
        layers = (nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, (1, 5)), nn.Flatten(), nn.Linear(20, 3))
        net = nn.Sequential(*layers).to(memory_format=order)
        optimizer = make_optimizer([net], OptimizerConfig(momentum=momentum), fused)
        for _ in range(4):
            optimizer.zero_grad()
            net(torch.randn(2, 6, 7, 7)).square().sum().backward()
            optimizer.step()
        return list(net.parameters()), optimizer

    (found, optimizer), (expected, plain) = trained(True), trained(False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert one.stride() == other.stride()
        if momentum:
            kept, wanted = (
                o.state[p]["momentum_buffer"] for o, p in ((optimizer, one), (plain, other))
            )
            torch.testing.assert_close(kept, wanted, rtol=1e-4, atol=1e-5)
            assert kept.shape == one.shape


def test_fused_sgd_copies_no_gradient_after_its_first_step() -> None:
    layer = nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last)
    optimizer = make_optimizer([layer], OptimizerConfig())
    for _ in range(2):
        layer.zero_grad()
        layer(torch.randn(2, 6, 7, 7)).sum().backward()
        with torch.profiler.profile() as seen:
            optimizer.step()
    assert not {"aten::clone", "aten::contiguous"} & {event.key for event in seen.key_averages()}


def test_a_torch_that_is_not_known_takes_its_own_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.SGD, "_init_group", lambda self, group, other: False)
    assert type(make_optimizer([small_net()], OptimizerConfig())) is torch.optim.SGD


WITHOUT_COMPILER = """
import sys, torch
from tser_cli.settings.config import OptimizerConfig
from tser_cli.engine.training.optimizer import make_optimizer
from tser_cli.models.base import build_model
layer = torch.nn.Linear(2, 2)
optimizer = make_optimizer([layer], OptimizerConfig())
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
assert layer.weight.grad is None
assert not any(state["momentum_buffer"].requires_grad for state in optimizer.state.values())
with torch.device("meta"):  # as a model file's description is tried
    build_model("resnet20", channels=1, height=8, width=8, num_classes=3)
sys.exit("torch._dynamo" in sys.modules)
"""


def test_neither_sgd_nor_a_network_without_memory_imports_the_compiler() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], check=True)


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"name": "cosine", "final_factor": 0.1}, {0: 1.0, 20: 0.1 + 0.9 * 0.5, 40: 0.1}),
        ({"name": "cosine", "warmup_epochs": 2}, {n: min(1.0, (n + 1) / 20) for n in range(21)}),
        (
            {"name": "onecycle", "warmup_epochs": 1},
            {4: 0.5, 9: 1.0, 39: 0.00273905},
        ),
        (
            {"name": "step", "milestones": (1, 2.5), "gamma": 0.1},
            {0: 1, 9: 1, 10: 0.1, 24: 0.1, 25: 0.01, 39: 0.01},
        ),
        ({"name": "constant"}, {37: 1.0}),
    ],
)
def test_the_learning_rate_of_every_schedule(
    settings: dict[str, Any], factors: dict[int, float]
) -> None:
    schedule = ScheduleConfig(**settings)
    found = {step: lr_factor(step, 10, 4, schedule) for step in factors}
    assert found == pytest.approx(factors, rel=1e-5)


@pytest.fixture
def student(wake: Callable[[Classifier], Classifier]) -> Classifier:
    """A spiking network whose norms have seen images."""
    return wake(networks.build("resnet20", SPEC, make_config(), spiking=True))


@pytest.mark.parametrize("name", [None, "ms_resnet_tiny", "spikformer_tiny"])
def test_every_norm_is_synchronised_and_nothing_else_changes(
    student: Classifier, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    if name is not None:  # spikingjelly's norms, some of which see time as an axis
        config = make_config({"model.student": name})
        student = networks.build(name, SPEC, config, spiking=True)
    images = torch.randn(5, 1, 8, 8)
    norms = [name for name, module in student.named_modules() if isinstance(module, _BatchNorm)]
    state = {name: value.clone() for name, value in student.state_dict().items()}
    expected = copy.deepcopy(student)
    monkeypatch.setattr(optimizer, "stabilise_ddp_buckets", lambda *rest: None)
    gpus: Any = SimpleNamespace(world=2, device=torch.device("cuda"), accelerator=Mock())
    gpus.accelerator.prepare_model = lambda network: network
    converted = share_gradients(student, gpus, (1, 8, 8), 3)
    assert len(norms) > 8
    assert all(isinstance(converted.get_submodule(name), nn.SyncBatchNorm) for name in norms)
    assert list(converted.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in converted.state_dict().items())
    for training in (True, False):  # alone, such a norm computes as any other
        given = converted.train(training)(images, 3)
        assert torch.equal(given, expected.train(training)(images, 3))
    for name, value in expected.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value), name


def test_one_process_shares_with_nobody(student: Classifier, runtime: Runtime) -> None:
    state = {name: value.clone() for name, value in student.state_dict().items()}
    assert share_gradients(student, runtime, (1, 8, 8), 3) is student
    share_statistics(student, runtime)
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
