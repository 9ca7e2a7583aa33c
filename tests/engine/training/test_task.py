"""What is trained, and that a teacher stays as it is."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tser_cli.base.errors import ConfigError
from tser_cli.engine.training.task import Task, distillation
from tser_cli.losses.base import Outputs, Terms, load_method
from tser_cli.models.base import Classifier, build_model
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.settings import registry
from tser_cli.settings.config import Config, MethodSettings, NeuronConfig

MakeTask = Callable[..., Task]
MakeConfig = Callable[..., Config]


def batch(images: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(images, 1, 8, 8), torch.arange(images) % 3


def network(channels: int = 1, classes: int = 3, neuron: NeuronConfig | None = None) -> Classifier:
    return build_model(
        "resnet20", channels=channels, height=8, width=8, num_classes=classes, neuron=neuron
    )


def train_a_little(task: Task, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for m in task.trainable() for p in m.parameters()], lr=0.1)
    task.network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        task.step(*batch()).terms["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_the_teacher_is_frozen_while_the_student_moves(
    make_task: MakeTask, make_config: MakeConfig
) -> None:
    task = make_task("student", make_config())
    assert task.teacher is not None
    before = copy.deepcopy(task.teacher.state_dict())
    student_before = copy.deepcopy(task.model.state_dict())
    train_a_little(task)
    assert not any(module.training for module in task.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    for name, value in task.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    moved = [n for n, v in task.model.state_dict().items() if not torch.equal(v, student_before[n])]
    assert "conv1.weight" in moved
    assert "bn1.running_mean" in moved


def test_the_teacher_is_no_part_of_what_is_trained(
    make_task: MakeTask, make_config: MakeConfig
) -> None:
    task = make_task("student", make_config())
    assert task.teacher is not None
    trained = {id(p) for module in task.trainable() for p in module.parameters()}
    assert trained == {id(p) for p in task.model.parameters()}
    assert not trained & {id(p) for p in task.teacher.parameters()}


def test_a_student_s_logits_keep_their_time_axis(
    make_task: MakeTask, make_config: MakeConfig
) -> None:
    task = make_task("student", make_config({"model.timesteps": 3}))
    images, labels = batch()
    result = task.step(images, labels)
    assert result.logits_TNK.shape == (3, 6, 3)
    assert set(result.terms) == {"loss", "ce", "kd", "entropy"}
    right = sum(
        int(row.argmax()) == int(label)
        for row, label in zip(result.logits_TNK.mean(0), labels, strict=True)
    )
    assert int(result.correct) == right


def test_the_teacher_s_answers_reach_the_loss(make_task: MakeTask, make_config: MakeConfig) -> None:
    task = make_task("student", make_config())
    images, labels = batch()
    before = task.step(images, labels).terms
    assert task.teacher is not None
    with torch.no_grad():
        task.teacher.get_submodule("fc").bias.add_(torch.tensor([4.0, 0.0, -4.0]))  # type: ignore[operator, union-attr]
    after = task.step(images, labels).terms
    assert torch.equal(before["ce"], after["ce"])
    assert not torch.equal(before["kd"], after["kd"])


def test_a_teacher_is_trained_with_cross_entropy(
    make_task: MakeTask, make_config: MakeConfig
) -> None:
    task = make_task("teacher", make_config({"method.label_smoothing": 0.1}))
    images, labels = batch()
    result = task.step(images, labels)
    assert task.teacher is None
    logits = task.model(images)
    target = torch.full((6, 3), 0.1 / 3).scatter(1, labels[:, None], 0.9 + 0.1 / 3)
    expected = -(target * logits.log_softmax(-1)).sum(-1).mean()
    assert result.terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert result.logits_TNK.shape == (1, 6, 3)


def test_ce_needs_no_teacher_and_asks_none(make_config: MakeConfig) -> None:
    config = make_config({"method.name": "ce"})
    student = network(neuron=NeuronConfig())
    assert set(distillation(student, None, config, (1, 8, 8)).step(*batch()).terms) == {
        "loss",
        "ce",
    }
    assert distillation(student, network(), config, (1, 8, 8)).teacher is None


@pytest.mark.parametrize("method", ["kd", "tskl", "tsce", "ts", "tser"])
def test_the_other_methods_need_one(make_config: MakeConfig, method: str) -> None:
    config = make_config({"method.name": method})
    with pytest.raises(AssertionError, match="teacher"):
        distillation(network(neuron=NeuronConfig()), None, config, (1, 8, 8))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("{'ce': ce}", "its function returns ce; it must be a dict of named terms with"),
        ("ce", "its function returns Tensor; it must be a dict"),
        ("{'loss': ce, 'logits': outputs.logits_TNK}", r"logits torch\.Size\(\[2, 2, 3\]\); every"),
        ("{'loss': ce.detach()}", "a loss that does not depend on the student's outputs"),
        ("{'loss': 1 / 0}", r"fails on two images: ZeroDivisionError: .*bad_method\.py, line \d+"),
    ],
)
def test_a_method_of_one_s_own_is_tried_before_anything_is_trained(
    make_task: MakeTask,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    returned: str,
    said: str,
) -> None:
    (tmp_path / "bad_method.py").write_text(
        "from tser_cli.losses.base import Distilling, mean_cross_entropy\n"
        "class Settings(Distilling):\n    name: str = 'bad'\n"
        "def loss(outputs, settings):\n"
        "    ce = mean_cross_entropy(outputs, settings)\n"
        f"    return {returned}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bad_method", raising=False)
    monkeypatch.setitem(registry.METHODS, "bad", registry.MethodEntry("bad_method"))
    with pytest.raises(ConfigError, match=f"method bad.*{said}"):
        make_task("student", make_config({"method.name": "bad"}))
    sys.modules.pop("bad_method", None)


def test_a_method_that_reads_firing_rates_is_given_them(
    make_task: MakeTask, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Outputs] = []

    def listening(outputs: Outputs, settings: MethodSettings) -> Terms:
        seen.append(outputs)
        return load_method("kd")(outputs, settings)

    for reads in (True, False):
        monkeypatch.setattr(registry.METHODS["kd"].settings, "reads_firing_rates", reads)
        task = make_task("student", make_config({"method.name": "kd"}))
        task.method = listening
        images, labels = batch()
        task.step(images, labels)
    with_rates, without = seen
    assert with_rates.firing_rates_L is not None and without.firing_rates_L is None
    neurons = [m for m in task.model.modules() if isinstance(m, SpikingNeuron)]
    assert with_rates.firing_rates_L.shape == (len(neurons),)
    assert torch.equal(with_rates.logits_TNK, without.logits_TNK)
