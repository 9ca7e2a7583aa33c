"""The training loop: rows, steps, and a loss or gradient that is not finite."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.engine.training.conftest import MakeConfig, MakeFit, assert_same, weights
from tser_cli.base.errors import NonFiniteError
from tser_cli.base.progress import Silent
from tser_cli.data.loaders import Batch
from tser_cli.engine.runs.checkpoints import load_latest
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.training.loop import fit, train_step
from tser_cli.engine.training.optimizer import make_optimizer
from tser_cli.engine.training.state import CheckpointClock, Position, TrainingJob
from tser_cli.losses.base import Outputs, Terms
from tser_cli.report.csv_files import read_csv
from tser_cli.settings.config import Config, MethodSettings


class Recorder(Silent):
    """Keeps what each step gave, and when each epoch ended."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int, int]] = []
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.ended = 0

    def begin(self, epochs: int, steps: int, done_epochs: int) -> None:
        self.begun.append((epochs, steps, done_epochs))

    def step(self, images: int, values: dict[str, Any]) -> None:
        self.steps.append((images, {name: float(value) for name, value in values.items()}))

    def end(self) -> None:
        self.ended += 1


def grey(images: int) -> Batch:
    labels = torch.arange(images) % 3
    return Batch(torch.randn(images, 1, 8, 8), labels, torch.arange(images))


def test_a_row_holds_the_means_of_its_steps(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    recorder = Recorder()
    work = make_fit("student", make_config(), tmp_path, recorder)
    rows = fit(work)
    assert recorder.begun == [(2, 3, 0)]
    assert recorder.ended == 1
    assert [images for images, _ in recorder.steps] == [8] * 6
    for number, row in enumerate(rows):
        steps = [values for _, values in recorder.steps[3 * number : 3 * number + 3]]
        assert row["epoch"] == number + 1
        for name in ("loss", "ce", "kd", "entropy"):
            mean = math.fsum(values[name] for values in steps) / 3
            assert row[name] == pytest.approx(mean, rel=1e-12)
        assert row["train_accuracy"] == sum(values["correct"] for values in steps) / 24
        assert row["validation_accuracy"] is None
        assert row["images_per_second"] > 0
        assert row["seconds"] > 0


def test_metrics_csv_holds_the_rows_to_full_precision(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    work = make_fit("teacher", make_config(), tmp_path)
    rows = fit(work)
    table = read_csv(work.run.folder / "metrics.csv")
    columns = ["epoch", "lr", "loss", "ce", "train_accuracy", "validation_accuracy"]
    assert list(table[0]) == [*columns, "images_per_second", "seconds"]
    for line, row in zip(table, rows, strict=True):
        for name, value in row.items():
            assert line[name] == "" if value is None else float(line[name]) == value
    assert work.run.status()["epoch"] == 2


def test_the_learning_rate_is_the_schedule_s(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"optimizer.lr": 0.2, "schedule.name": "cosine"})
    rows = fit(make_fit("teacher", config, tmp_path))
    expected = [0.2 * (1 + math.cos(math.pi * step / 6)) / 2 for step in (2, 5)]
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=1e-12)


def one_step(
    make_fit: MakeFit, config: Config, folder: Path, images: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], TrainingJob]:
    """Gradients and terms of a step on a network whose norms are in eval mode."""
    work = make_fit("teacher", config, folder)
    work.task.model.eval()
    optimizer = work.runtime.accelerator.prepare_optimizer(
        make_optimizer(work.task.trainable(), config.optimizer)
    )
    torch.manual_seed(5)
    values = train_step(work, optimizer, grey(images), Position())
    gradients = {name: p.grad for name, p in work.task.model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return gradients, values, work  # type: ignore[return-value]


@pytest.mark.parametrize("images", [8, 7])
def test_accumulating_over_parts_changes_no_gradient(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path, images: int
) -> None:
    whole, terms, _ = one_step(make_fit, make_config(), tmp_path / "1", images)
    config = make_config({"training.accumulate": 2})
    parts, terms_of_parts, _ = one_step(make_fit, config, tmp_path / "2", images)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert float(terms_of_parts["loss"]) == pytest.approx(float(terms["loss"]), rel=1e-5)
    assert int(terms_of_parts["correct"]) == int(terms["correct"])


def test_clip_norm_shortens_the_gradient_and_keeps_its_direction(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    free, _, _ = one_step(make_fit, make_config(), tmp_path / "1", 8)
    config = make_config({"training.clip_norm": 0.01})
    clipped, _, _ = one_step(make_fit, config, tmp_path / "2", 8)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in free.values()))
    assert norm > 0.1
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient * (0.01 / norm), rtol=1e-3, atol=1e-8)


def test_without_validation_the_last_epoch_s_weights_are_kept(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    work = make_fit("teacher", make_config(), tmp_path)
    fit(work)
    state = load_latest(work.run.checkpoints, pytest.fail)
    assert state is not None
    assert state["best_state"] is None
    assert (state["epoch"], state["step"]) == (2, 0)
    assert_same(weights(work), state["model"])


@pytest.mark.parametrize(
    ("scores", "best"), [([0.2, 0.9, 0.5], 1), ([0.9, 0.2, 0.5], 0), ([0.5, 0.5, 0.4], 0)]
)
def test_with_validation_the_best_epoch_s_weights_are_kept(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path, scores: list[float], best: int
) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate() -> float:
        seen.append(weights(work))
        return scores[len(seen) - 1]

    config = make_config({"training.epochs": 3})
    work = make_fit("teacher", config, tmp_path, validate=validate)
    rows = fit(work)
    assert [row["validation_accuracy"] for row in rows] == scores
    assert_same(weights(work), seen[best])
    assert not torch.equal(*(state["conv1.weight"] for state in seen[:2]))


def test_the_best_weights_survive_a_resume(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    first = make_fit("teacher", make_config({"training.epochs": 1}), tmp_path, validate=lambda: 0.9)
    fit(first)
    resumed = make_fit("teacher", make_config(), tmp_path, validate=lambda: 0.3)
    rows = fit(resumed)
    assert [row["validation_accuracy"] for row in rows] == [0.9, 0.3]
    assert_same(weights(resumed), weights(first))


class Counting(Runtime):
    """Counts how often the processes would meet to agree on something."""

    meetings = 0

    def any(self, flag: bool) -> bool:
        Counting.meetings += 1
        return super().any(flag)


def test_processes_meet_equally_often_whatever_their_clocks_say(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for due in (True, False):
        work = make_fit("teacher", make_config(), tmp_path / str(due))
        work.runtime = Counting(work.runtime.accelerator)
        monkeypatch.setattr(Counting, "meetings", 0)
        monkeypatch.setattr(CheckpointClock, "now", lambda self, steps, due=due: due)
        fit(work)
        counts.append(Counting.meetings)
    assert counts[0] == counts[1]


def test_curves_are_written_for_tensorboard(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    work = make_fit("teacher", make_config({"training.tensorboard": True}), tmp_path)
    rows = fit(work)
    events = EventAccumulator(str(work.run.folder)).Reload()
    assert "validation_accuracy" not in events.Tags()["scalars"]
    points = [(point.step, point.value) for point in events.Scalars("loss")]
    assert points == [(row["epoch"], pytest.approx(row["loss"], rel=1e-6)) for row in rows]


class Poisoned:
    """Cross entropy that is NaN from the given call on."""

    def __init__(self, call: int, value: float = math.nan) -> None:
        self.left, self.value = call, value

    def __call__(self, outputs: Outputs, settings: MethodSettings) -> Terms:
        self.left -= 1
        loss = F.cross_entropy(outputs.logits_TNK.mean(0), outputs.labels_N)
        bad = loss * self.value if self.left <= 0 else loss
        return {"loss": bad, "ce": loss, "kd": bad}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_terms(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path, value: float
) -> None:
    config = make_config({"training.checkpoint_every": "2steps"})
    recorder = Recorder()
    work = make_fit("student", config, tmp_path, recorder)
    work.task.method = Poisoned(6, value)
    with pytest.raises(NonFiniteError, match=rf"epoch 2, step 3: loss = {value}, ce = \d") as error:
        fit(work)
    assert f"kd = {value}" in str(error.value)
    assert str(work.run.checkpoints) in str(error.value)
    state = load_latest(work.run.checkpoints, pytest.fail)
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 1)
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())
    assert len(recorder.steps) == 5


def test_the_weights_stay_when_the_loss_is_nan(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    work = make_fit("teacher", make_config(), tmp_path)
    work.task.method = Poisoned(1)
    before = dict(copy.deepcopy(work.task.model).named_parameters())
    with pytest.raises(NonFiniteError, match="epoch 1, step 1"):
        fit(work)
    assert_same(before, dict(work.task.model.named_parameters()))
    assert load_latest(work.run.checkpoints, pytest.fail) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_names_its_layer(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path, value: float
) -> None:
    work = make_fit("student", make_config(), tmp_path)
    before = dict(copy.deepcopy(work.task.model).named_parameters())
    parameter = work.task.model.get_parameter("layer2.0.conv1.weight")
    parameter.register_hook(lambda gradient: gradient * value)
    with pytest.raises(NonFiniteError, match=r"gradients of layer2\.0\.conv1\.weight\. Try"):
        fit(work)
    assert_same(before, dict(work.task.model.named_parameters()))


def test_a_loss_alone_that_is_not_finite_blames_no_layer(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    def method(outputs: Outputs, settings: MethodSettings) -> Terms:
        loss = F.cross_entropy(outputs.logits_TNK.mean(0), outputs.labels_N)
        return {"loss": loss + math.inf}

    work = make_fit("teacher", make_config(), tmp_path)
    work.task.method = method
    with pytest.raises(NonFiniteError, match="the gradients here are finite"):
        fit(work)
