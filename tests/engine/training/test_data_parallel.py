"""What several processes share, as far as one process can show it; `tests/faults` has the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.training.optimizer import share_gradients, share_statistics, synchronised
from tser_cli.models.base import Classifier
from tser_cli.settings.config import Config


@pytest.fixture
def student(
    spec: DataSpec, make_config: Callable[..., Config], wake: Callable[[Classifier], Classifier]
) -> Classifier:
    """A spiking network whose norms have seen images."""
    return wake(networks.build("resnet20", spec, make_config(), spiking=True))


def test_every_norm_is_synchronised_and_nothing_else_changes(student: Classifier) -> None:
    images = torch.randn(5, 1, 8, 8)
    norms = [name for name, module in student.named_modules() if type(module) is nn.BatchNorm2d]
    state = {name: value.clone() for name, value in student.state_dict().items()}
    expected = student(images, 3)
    converted = synchronised(student)
    assert len(norms) > 18
    assert all(type(converted.get_submodule(name)) is nn.SyncBatchNorm for name in norms)
    assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    assert list(converted.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in converted.state_dict().items())
    assert torch.equal(converted.eval()(images, 3), expected)


def test_one_process_shares_with_nobody(student: Classifier, runtime: Runtime) -> None:
    state = {name: value.clone() for name, value in student.state_dict().items()}
    assert share_gradients(student, runtime, (1, 8, 8), 3) is student
    share_statistics(student, runtime)
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
