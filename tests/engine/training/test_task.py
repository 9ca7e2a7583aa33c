"""What is trained: the terms of a step, of every method; what the loss is given."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.training.conftest import MakeConfig, MakeContext, MakeTask
from tser_cli.base.errors import ConfigError
from tser_cli.engine.commands import train
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Options
from tser_cli.engine.runs.weights import load_model
from tser_cli.engine.training import settle
from tser_cli.engine.training.task import Task, distillation
from tser_cli.losses.adapters import Blur
from tser_cli.losses.base import Outputs, Terms, load_method
from tser_cli.models.base import Classifier, build_model
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.settings import registry
from tser_cli.settings.config import Config, MethodSettings, NeuronConfig

OF_FEATURES = ["feature", "kd_feature", "bkd"]
SHAPE = (1, 8, 8)


def batch(images: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(images, 1, 8, 8), torch.arange(images) % 3


def network(name: str = "resnet20", spiking: bool = False, **changes: Any) -> Classifier:
    neuron = NeuronConfig() if spiking else None
    return build_model(name, channels=1, height=8, width=8, num_classes=3, neuron=neuron, **changes)


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
    student = network(spiking=True)
    assert set(distillation(student, None, config, (1, 8, 8)).step(*batch()).terms) == {
        "loss",
        "ce",
    }
    assert distillation(student, network(), config, (1, 8, 8)).teacher is None


@pytest.mark.parametrize("method", ["kd", "tskl", "tsce", "ts", "tser"])
def test_the_other_methods_need_one(make_config: MakeConfig, method: str) -> None:
    config = make_config({"method.name": method})
    with pytest.raises(AssertionError, match="teacher"):
        distillation(network(spiking=True), None, config, (1, 8, 8))


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
def test_a_method_of_your_own_is_tried_before_anything_is_trained(
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


def adapters_of(task: Task) -> torch.nn.Module:
    assert task.adapters is not None
    return task.adapters


@pytest.mark.parametrize("method", OF_FEATURES)
def test_adapters_train_with_the_student(
    make_task: MakeTask, make_config: MakeConfig, method: str
) -> None:
    task = make_task("student", make_config({"method.name": method}))
    assert task.trainable() == [task.model, task.adapters]
    before = copy.deepcopy([m.state_dict() for m in task.trainable()])
    teacher = copy.deepcopy(task.teacher.state_dict()) if task.teacher else {}
    moved = [p for _, p in task.named_parameters()]
    assert {id(p) for p in moved} == {id(p) for m in task.trainable() for p in m.parameters()}
    optimizer = torch.optim.SGD(moved, lr=0.01)
    task.network.train()
    for _ in range(2):
        task.step(*batch()).terms["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for module, old in zip(task.trainable(), before, strict=True):
        for name, parameter in module.named_parameters():
            assert not torch.equal(parameter, old[name]), name
    assert task.teacher is not None and len(teacher) > 0
    for name, value in task.teacher.state_dict().items():
        assert torch.equal(value, teacher[name]), name


def test_features_are_means_over_time_through_the_adapters(
    make_task: MakeTask, make_config: MakeConfig
) -> None:
    config = make_config({"method.name": "feature", "model.timesteps": 3})
    task = make_task("student", config)
    images, labels = batch()
    task.network.eval()
    found = task.step(images, labels).terms["feature"]

    def stages(model: Classifier, timesteps: int) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda m, a, y: kept.append(y))
            for name in ("layer1", "layer2", "layer3")
        ]
        model(images, timesteps)
        for hook in hooks:
            hook.remove()
        return kept

    assert task.teacher is not None
    errors = []
    for number, theirs in enumerate(stages(task.teacher, 1)):
        ours = stages(task.model, 3)[number]
        adapt = adapters_of(task).get_submodule(str(number))
        errors.append(((adapt(ours.view(3, 6, *ours.shape[1:]).mean(0)) - theirs) ** 2).mean())
    assert found.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_the_blur_masks_channels_while_it_trains() -> None:
    blur = Blur(64, 64)
    blur.rebuild = torch.nn.Sequential()  # nothing: what comes out is what was masked
    ones = (torch.ones(100, 64, 2, 2),)
    (masked,) = blur.train()(ones)
    whole = masked.flatten(2)
    assert ((whole == 0).all(2) | (whole == 1).all(2)).all()
    # 15 % of 6,400 channels, five standard deviations of 28.6 wide
    assert (masked == 0)[:, :, 0, 0].sum().item() == pytest.approx(960, abs=143)
    assert torch.equal(blur.eval()(ones)[0], ones[0])


def test_the_blur_aligns_channels_where_they_differ() -> None:
    assert isinstance(Blur(8, 8).align, torch.nn.Identity)
    align = Blur(8, 12).align
    assert isinstance(align, torch.nn.Conv2d)
    assert (align.in_channels, align.out_channels, align.kernel_size) == (8, 12, (1, 1))


@pytest.mark.parametrize(
    ("method", "student", "teacher", "said"),
    [
        ("feature", "resnet20", "resnet34", "the student has 3 stages and the teacher 4"),
        ("kd_feature", "resnet18", "resnet20", "the student has 4 stages and the teacher 3"),
        ("bkd", "resnet20", "resnet34", "the last stage is 2 x 2 in the student and 1 x 1 in the"),
        ("feature", "vgg11", "resnet20", "the student names none"),
        ("bkd", "resnet20", "vgg11", "the teacher names none"),
    ],
)
def test_networks_that_do_not_match(
    make_config: MakeConfig, method: str, student: str, teacher: str, said: str
) -> None:
    config = make_config({"method.name": method, "model.student": student})
    with pytest.raises(ConfigError, match=said):
        distillation(network(student, True), network(teacher, False), config, SHAPE)


def test_maps_of_other_sizes_do_not_match(make_config: MakeConfig) -> None:
    config = make_config({"method.name": "feature"})
    teacher = network("resnet20", False, stem="large")
    with pytest.raises(ConfigError, match=r"stage 1 is 8 x 8 in .* 2 x 2 in .*model\.stem"):
        distillation(network("resnet20", True), teacher, config, SHAPE)


@pytest.mark.parametrize("method", OF_FEATURES)
def test_other_widths_match(make_config: MakeConfig, method: str) -> None:
    config = make_config({"method.name": method, "model.timesteps": 1})
    task = distillation(network("resnet18", True), network("resnet50", False), config, SHAPE)
    assert torch.isfinite(task.step(*batch()).terms["loss"])


@pytest.mark.parametrize("method", OF_FEATURES)
def test_adapters_stay_out_of_the_saved_model(
    make_context: MakeContext,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    monkeypatch.setattr(settle, "prepare", make_context)
    spec, file = make_context(make_config()).dataset.spec, tmp_path / "teacher.safetensors"
    teacher = networks.build("resnet20", spec, make_config(), spiking=False)
    networks.write(file, teacher, networks.describe("resnet20", spec, make_config(), False))
    changes = {"method.name": method, "model.teacher": str(file), "training.epochs": 1}
    made = Run(train.distill(make_config(changes), Options(tmp_path / "runs")).folder)
    state, _, _ = load_model(made.model_file)
    plain = networks.build("resnet20", spec, make_config(), spiking=True)
    assert state.keys() == plain.state_dict().keys()
    assert networks.read(made.model_file, spec).model.spiking
    assert made.status()["state"] == "finished"


def test_ts_with_an_entropy_weight_is_tser(make_task: MakeTask, make_config: MakeConfig) -> None:
    found = []
    for changes in (
        {"method.name": "ts", "method.entropy_weight": 0.05},
        {"method.name": "tser"},
    ):
        task = make_task("student", make_config(changes))
        torch.manual_seed(5)
        terms = task.step(*batch()).terms
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
        found.append((terms, gradients))
    (ts, ts_gradients), (tser, tser_gradients) = found
    assert ts.keys() == tser.keys() == {"loss", "ce", "kd", "entropy"}
    assert all(torch.equal(ts[name], tser[name]) for name in ts)
    assert all(torch.equal(a, b) for a, b in zip(ts_gradients, tser_gradients, strict=True))


@pytest.mark.parametrize("method", ["ce", "kd", "feature", "seal", "tet"])
def test_an_entropy_weight_adds_a_term_to_any_method(
    make_task: MakeTask, make_config: MakeConfig, method: str
) -> None:
    images, labels = batch()
    losses = []
    for weight in (0.0, 0.5):
        config = make_config({"method.name": method, "method.entropy_weight": weight})
        terms = make_task("student", config).step(images, labels).terms
        losses.append(terms["loss"].item())
    expected = losses[0] - 0.5 * terms["entropy"].item()
    assert losses[1] == pytest.approx(expected, rel=1e-5)


def keep(outputs: list[torch.Tensor], module: Any, args: Any, output: torch.Tensor) -> None:
    outputs.append(output)


@pytest.mark.parametrize("method", ["tser", "kd_feature"])
def test_a_rate_weight_charges_for_the_mean_rate_of_any_method(
    make_task: MakeTask, make_config: MakeConfig, method: str
) -> None:
    images, labels = batch()
    found = []
    for weight in (0.0, 0.5):
        config = make_config({"method.name": method, "method.rate_weight": weight})
        task = make_task("student", config)
        spikes: list[torch.Tensor] = []
        for module in task.model.modules():
            if hasattr(module, "is_spiking_neuron"):
                module.register_forward_hook(partial(keep, spikes))
        terms = task.step(images, labels).terms
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        found.append((terms, task.model.get_parameter("conv1.weight").grad))
    (free, free_gradient), (charged, gradient) = found
    rate = sum(s.sum().item() for s in spikes) / sum(s.numel() for s in spikes)
    assert charged["rate"].item() == pytest.approx(rate, rel=1e-5)
    assert charged["loss"].item() == pytest.approx(free["loss"].item() + 0.5 * rate, rel=1e-5)
    assert free.keys() == charged.keys() - {"rate"}
    assert free_gradient is not None and not torch.allclose(free_gradient, gradient)


def test_own_weights_and_what_overrides_them(make_config: MakeConfig) -> None:
    assert make_config({"method.name": "tsd"}).method.alpha == 0.2
    assert make_config({"method.name": "tsd", "method.alpha": 0.9}).method.alpha == 0.9
    assert make_config({"method.name": "feature"}).method.feature_weight == 100.0
    with pytest.raises(ConfigError, match="kd does not read it; it is read by feature, "):
        make_config({"method.name": "kd", "method.feature_weight": 1.0})
    again = Config.model_validate(make_config({"method.name": "bkd"}).model_dump(mode="json"))
    assert again.method.feature_weight == 16.384


def test_sums_over_features_are_made_in_full_precision(
    make_task: MakeTask, make_config: MakeConfig, make_context: MakeContext
) -> None:
    config = make_config({"method.name": "bkd", "training.precision": "bf16"})
    task, place = make_task("student", config), make_context(config)
    with place.runtime.autocast():
        terms = task.step(*batch()).terms
    assert {name: term.dtype for name, term in terms.items()} == dict.fromkeys(terms, torch.float32)
