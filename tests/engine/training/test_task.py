"""What is trained: the terms of a step, of every method; what the loss is given."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import make_config, make_context
from tests.engine.training.conftest import assert_same, task_of
from tser_cli.base.errors import ConfigError
from tser_cli.engine.commands import train
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Options
from tser_cli.engine.runs.weights import load_model
from tser_cli.engine.training import settle
from tser_cli.engine.training.task import distillation
from tser_cli.losses.adapters import Blur
from tser_cli.losses.base import Outputs, Terms, load_method
from tser_cli.models.base import Classifier, FeatureTap, build_model
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.settings import registry
from tser_cli.settings.config import Config, MethodSettings, NeuronConfig

SHAPE = (1, 8, 8)


def batch(images: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(images, 1, 8, 8), torch.arange(images) % 3


def network(name: str = "resnet20", spiking: bool = False, **changes: Any) -> Classifier:
    neuron = NeuronConfig() if spiking else None
    return build_model(name, channels=1, height=8, width=8, num_classes=3, neuron=neuron, **changes)


def test_the_teacher_is_frozen_while_the_student_moves() -> None:
    task = task_of()
    assert task.trainable() == [task.model]
    before = copy.deepcopy(task.teacher.state_dict())
    student_before = copy.deepcopy(task.model.state_dict())
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    task.network.train()
    for _ in range(3):
        optimizer.zero_grad()
        task.step(*batch()).terms["loss"].backward()
        optimizer.step()
    assert not any(module.training for module in task.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert_same(task.teacher.state_dict(), before)
    moved = [n for n, v in task.model.state_dict().items() if not torch.equal(v, student_before[n])]
    assert "conv1.weight" in moved
    assert "bn1.running_mean" in moved


def test_a_student_s_logits_keep_their_time_axis() -> None:
    images, labels = batch()
    result = task_of({"model.timesteps": 3}).step(images, labels)
    assert result.logits_TNK.shape == (3, 6, 3)
    assert set(result.terms) == {"loss", "ce", "kd", "entropy"}
    means = result.logits_TNK.mean(0)
    right = [int(row.argmax()) == int(label) for row, label in zip(means, labels, strict=True)]
    assert int(result.correct) == sum(right)


def test_the_teacher_s_answers_reach_the_loss() -> None:
    task = task_of()
    images, labels = batch()
    before = task.step(images, labels).terms
    with torch.no_grad():
        task.teacher.get_submodule("fc").bias.add_(torch.tensor([4.0, 0.0, -4.0]))
    after = task.step(images, labels).terms
    assert torch.equal(before["ce"], after["ce"])
    assert not torch.equal(before["kd"], after["kd"])


def test_a_teacher_is_trained_with_cross_entropy() -> None:
    task = task_of({"method.label_smoothing": 0.1}, "teacher")
    images, labels = batch()
    result = task.step(images, labels)
    assert task.teacher is None
    logits = task.model(images)
    target = torch.full((6, 3), 0.1 / 3).scatter(1, labels[:, None], 0.9 + 0.1 / 3)
    expected = -(target * logits.log_softmax(-1)).sum(-1).mean()
    assert result.terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert result.logits_TNK.shape == (1, 6, 3)


def test_ce_alone_needs_no_teacher_and_asks_none() -> None:
    config = make_config({"method.name": "ce"})
    student = network(spiking=True)
    terms = distillation(student, None, config, SHAPE).step(*batch()).terms
    assert set(terms) == {"loss", "ce"}
    assert distillation(student, network(), config, SHAPE).teacher is None
    for method in ("kd", "tskl", "tsce", "ts", "tser"):
        with pytest.raises(AssertionError, match="teacher"):
            distillation(student, None, make_config({"method.name": method}), SHAPE)


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: str, said: str
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
        task_of({"method.name": "bad"})
    sys.modules.pop("bad_method", None)


def test_a_method_that_reads_firing_rates_is_given_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Outputs] = []

    def listening(outputs: Outputs, settings: MethodSettings) -> Terms:
        seen.append(outputs)
        return load_method("kd")(outputs, settings)

    for reads in (True, False):
        monkeypatch.setattr(registry.METHODS["kd"].settings, "reads_firing_rates", reads)
        task = task_of({"method.name": "kd"})
        task.method = listening
        images, labels = batch()
        task.step(images, labels)
    with_rates, without = seen
    assert with_rates.firing_rates_L is not None and without.firing_rates_L is None
    neurons = [m for m in task.model.modules() if isinstance(m, SpikingNeuron)]
    assert with_rates.firing_rates_L.shape == (len(neurons),)
    assert torch.equal(with_rates.logits_TNK, without.logits_TNK)


@pytest.mark.parametrize("method", ["feature", "bkd"])
def test_adapters_train_with_the_student(method: str) -> None:
    task = task_of({"method.name": method})
    assert task.trainable() == [task.model, task.adapters]
    before = copy.deepcopy([m.state_dict() for m in task.trainable()])
    teacher = copy.deepcopy(task.teacher.state_dict())
    moved = [p for _, p in task.named_parameters()]
    assert {id(p) for p in moved} == {id(p) for m in task.trainable() for p in m.parameters()}
    optimizer = torch.optim.SGD(moved, lr=0.01)
    task.network.train()
    for _ in range(2):
        task.step(*batch()).terms["loss"].backward()
        optimizer.step()
    for module, old in zip(task.trainable(), before, strict=True):
        for name, parameter in module.named_parameters():
            assert not torch.equal(parameter, old[name]), name
    assert_same(task.teacher.state_dict(), teacher)


def test_features_are_means_over_time_through_the_adapters() -> None:
    task = task_of({"method.name": "feature", "model.timesteps": 3})
    images, labels = batch()
    task.network.eval()
    found = task.step(images, labels).terms["feature"]
    kept: list[torch.Tensor] = []
    for model, timesteps in ((task.teacher, 1), (task.model, 3)):
        tap = FeatureTap(model)
        model(images, timesteps)
        kept.append(tap.take())
    errors = []
    for adapt, theirs, ours in zip(task.adapters, *kept, strict=True):
        errors.append(((adapt(ours.view(3, 6, *ours.shape[1:]).mean(0)) - theirs) ** 2).mean())
    assert found.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_the_blur_masks_channels_while_it_trains() -> None:
    blur = Blur(64, 64)
    assert isinstance(blur.align, torch.nn.Identity)
    blur.rebuild = torch.nn.Sequential()  # nothing: what comes out is what was masked
    ones = (torch.ones(100, 64, 2, 2),)
    (masked,) = blur.train()(ones)
    whole = masked.flatten(2)
    assert ((whole == 0).all(2) | (whole == 1).all(2)).all()
    # 15 % of 6,400 channels, five standard deviations of 28.6 wide
    assert (masked == 0)[:, :, 0, 0].sum().item() == pytest.approx(960, abs=143)
    assert torch.equal(blur.eval()(ones)[0], ones[0])
    align = Blur(8, 12).align
    assert (align.in_channels, align.out_channels, align.kernel_size) == (8, 12, (1, 1))


@pytest.mark.parametrize(
    ("method", "student", "teacher", "said"),
    [
        ("feature", "resnet20", "resnet18", "the student has 3 stages and the teacher 4"),
        ("bkd", "resnet20", "resnet18", "the last stage is 2 x 2 in the student and 1 x 1 in the"),
        ("bkd", "resnet20", "vgg11", "the teacher names none"),
        ("feature", "resnet20", "large", r"stage 1 is 8 x 8 in .* 2 x 2 in .*model\.stem"),
    ],
)
def test_networks_that_do_not_match(method: str, student: str, teacher: str, said: str) -> None:
    config = make_config({"method.name": method, "model.student": student})
    taught = network(stem="large") if teacher == "large" else network(teacher)
    with pytest.raises(ConfigError, match=said):
        distillation(network(student, True), taught, config, SHAPE)


def test_other_widths_match() -> None:
    config = make_config({"method.name": "kd_feature", "model.timesteps": 1})
    task = distillation(network("resnet18", True), network("resnet50"), config, SHAPE)
    assert torch.isfinite(task.step(*batch(2)).terms["loss"])


def test_adapters_stay_out_of_the_saved_model(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "prepare", make_context)
    changes = {"method.name": "bkd", "model.teacher": str(teacher_file), "training.epochs": 1}
    made = Run(train.distill(make_config(changes), Options(tmp_path / "runs")).folder)
    state, _, _ = load_model(made.model_file)
    spec = make_context(make_config()).dataset.spec
    plain = networks.build("resnet20", spec, make_config(), spiking=True)
    assert state.keys() == plain.state_dict().keys()
    assert networks.read(made.model_file, spec).model.spiking
    assert made.status()["state"] == "finished"


def test_ts_with_an_entropy_weight_is_tser() -> None:
    found = []
    for changes in ({"method.name": "ts", "method.entropy_weight": 0.05}, {"method.name": "tser"}):
        task = task_of(changes)
        torch.manual_seed(5)
        terms = task.step(*batch()).terms
        terms["loss"].backward()
        gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
        found.append((terms, gradients))
    (ts, ts_gradients), (tser, tser_gradients) = found
    assert ts.keys() == tser.keys() == {"loss", "ce", "kd", "entropy"}
    assert all(torch.equal(ts[name], tser[name]) for name in ts)
    assert all(torch.equal(a, b) for a, b in zip(ts_gradients, tser_gradients, strict=True))


@pytest.mark.parametrize("method", ["ce", "feature", "tet"])
def test_an_entropy_weight_adds_a_term_to_any_method(method: str) -> None:
    images, labels = batch()
    losses = []
    for weight in (0.0, 0.5):
        task = task_of({"method.name": method, "method.entropy_weight": weight})
        terms = task.step(images, labels).terms
        losses.append(terms["loss"].item())
    expected = losses[0] - 0.5 * terms["entropy"].item()
    assert losses[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["tser", "kd_feature"])
def test_a_rate_weight_charges_for_the_mean_rate_of_any_method(method: str) -> None:
    images, labels = batch()
    found = []
    for weight in (0.0, 0.5):
        task = task_of({"method.name": method, "method.rate_weight": weight})
        spikes: list[torch.Tensor] = []
        for module in task.model.modules():
            if hasattr(module, "is_spiking_neuron"):
                module.register_forward_hook(
                    lambda of, args, out, spikes=spikes: spikes.append(out)
                )
        terms = task.step(images, labels).terms
        terms["loss"].backward()
        found.append((terms, task.model.get_parameter("conv1.weight").grad))
    (free, free_gradient), (charged, gradient) = found
    rate = sum(s.sum().item() for s in spikes) / sum(s.numel() for s in spikes)
    assert charged["rate"].item() == pytest.approx(rate, rel=1e-5)
    assert charged["loss"].item() == pytest.approx(free["loss"].item() + 0.5 * rate, rel=1e-5)
    assert free.keys() == charged.keys() - {"rate"}
    assert not torch.allclose(free_gradient, gradient)


def test_own_weights_and_what_overrides_them() -> None:
    assert make_config({"method.name": "tsd"}).method.alpha == 0.2
    assert make_config({"method.name": "tsd", "method.alpha": 0.9}).method.alpha == 0.9
    assert make_config({"method.name": "feature"}).method.feature_weight == 100.0
    with pytest.raises(ConfigError, match="kd does not read it; it is read by feature, "):
        make_config({"method.name": "kd", "method.feature_weight": 1.0})
    again = Config.model_validate(make_config({"method.name": "bkd"}).model_dump(mode="json"))
    assert again.method.feature_weight == 16.384


def test_sums_over_features_are_made_in_full_precision() -> None:
    task = task_of({"method.name": "bkd"})
    with torch.autocast("cpu", torch.bfloat16):
        terms = task.step(*batch()).terms
    assert {name: term.dtype for name, term in terms.items()} == dict.fromkeys(terms, torch.float32)
