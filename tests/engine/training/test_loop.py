"""The training loop: rows, steps, and a loss or gradient that is not finite."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.engine.training.conftest import Job, assert_same, weights
from tser_cli.base.errors import NonFiniteError
from tser_cli.base.progress import Silent
from tser_cli.data.loaders import Batch
from tser_cli.engine.runs.checkpoints import load_latest
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.training.loop import fit, train_step
from tser_cli.engine.training.optimizer import make_optimizer
from tser_cli.engine.training.state import CheckpointClock, Position
from tser_cli.losses.base import Outputs, Terms
from tser_cli.report.csv_files import read_csv
from tser_cli.settings.config import MethodSettings


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


def test_a_row_holds_the_means_of_its_steps_and_metrics_csv_the_rows(job: Job) -> None:
    recorder = Recorder()
    work = job("student", {}, recorder)
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
        taught = sum(values["teacher_correct"] for values in steps)
        assert row["teacher_train_accuracy"] == taught / 24
        assert row["validation_accuracy"] is None
        assert row["images_per_second"] > 0
        assert row["seconds"] > 0
    table = read_csv(work.run.folder / "metrics.csv")
    columns = ["epoch", "lr", "loss", "ce", "kd", "entropy", "train_accuracy"]
    columns += ["teacher_train_accuracy", "validation_accuracy", "images_per_second", "seconds"]
    assert list(table[0]) == columns
    for line, row in zip(table, rows, strict=True):
        for name, value in row.items():
            assert line[name] == "" if value is None else float(line[name]) == value
    assert work.run.status()["epoch"] == 2
    state = load_latest(work.run.checkpoints, pytest.fail)
    assert state["best_state"] is None
    assert (state["epoch"], state["step"]) == (2, 0)
    assert_same(weights(work), state["model"])  # without validation, those of the last epoch


def test_the_learning_rate_is_the_schedule_s(job: Job) -> None:
    rows = fit(job("teacher", {"optimizer.lr": 0.2, "schedule.name": "cosine"}))
    expected = [0.2 * (1 + math.cos(math.pi * step / 6)) / 2 for step in (2, 5)]
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=1e-12)


def one_step(
    job: Job, changes: dict[str, Any], images: int = 8
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients and terms of a step on a network whose norms are in eval mode."""
    work = job("teacher", changes, folder=str(changes))
    work.task.model.eval()
    optimizer = work.runtime.accelerator.prepare_optimizer(
        make_optimizer(work.task.trainable(), work.config.optimizer)
    )
    torch.manual_seed(5)
    labels = torch.arange(images) % 3
    batch = Batch(torch.randn(images, 1, 8, 8), labels, torch.arange(images))
    values = train_step(work, optimizer, batch, Position())
    gradients = {name: p.grad for name, p in work.task.model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return gradients, values


@pytest.mark.parametrize("images", [8, 7])
def test_accumulating_over_parts_changes_no_gradient(job: Job, images: int) -> None:
    whole, terms = one_step(job, {}, images)
    parts, terms_of_parts = one_step(job, {"training.accumulate": 2}, images)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert float(terms_of_parts["loss"]) == pytest.approx(float(terms["loss"]), rel=1e-5)
    assert int(terms_of_parts["correct"]) == int(terms["correct"])


def test_clip_norm_shortens_the_gradient_and_keeps_its_direction(job: Job) -> None:
    free, _ = one_step(job, {})
    clipped, _ = one_step(job, {"training.clip_norm": 0.01})
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in free.values()))
    assert norm > 0.1
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient * (0.01 / norm), rtol=1e-3, atol=1e-8)


def test_with_validation_the_best_epoch_s_weights_are_kept(job: Job) -> None:
    scores, seen = [0.2, 0.9, 0.9], list[dict[str, Tensor]]()  # the first of equals

    def validate() -> float:
        seen.append(weights(work))
        return scores[len(seen) - 1]

    work = job("teacher", {"training.epochs": 3}, validate=validate)
    rows = fit(work)
    assert [row["validation_accuracy"] for row in rows] == scores
    assert_same(weights(work), seen[1])
    assert not torch.equal(*(state["conv1.weight"] for state in seen[:2]))


def test_the_best_weights_survive_a_resume(job: Job) -> None:
    first = job("teacher", {"training.epochs": 1}, validate=lambda: 0.9)
    fit(first)
    resumed = job("teacher", validate=lambda: 0.3)
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
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for due in (True, False):
        work = job("teacher", folder=str(due))
        work.runtime = Counting(work.runtime.accelerator)
        monkeypatch.setattr(Counting, "meetings", 0)
        monkeypatch.setattr(CheckpointClock, "now", lambda self, steps, due=due: due)
        fit(work)
        counts.append(Counting.meetings)
    assert counts[0] == counts[1]


def test_curves_are_written_for_tensorboard(job: Job) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    work = job("teacher", {"training.tensorboard": True})
    rows = fit(work)
    events = EventAccumulator(str(work.run.folder)).Reload()
    assert "validation_accuracy" not in events.Tags()["scalars"]
    points = [(point.step, point.value) for point in events.Scalars("loss")]
    assert points == [(row["epoch"], pytest.approx(row["loss"], rel=1e-6)) for row in rows]


class Poisoned:
    """Cross entropy that is not finite at the sixth call."""

    def __init__(self, value: float) -> None:
        self.left, self.value = 6, value

    def __call__(self, outputs: Outputs, settings: MethodSettings) -> Terms:
        self.left -= 1
        loss = F.cross_entropy(outputs.logits_TNK.mean(0), outputs.labels_N)
        bad = loss * self.value if self.left == 0 else loss
        return {"loss": bad, "ce": loss, "kd": bad}


def test_a_loss_that_is_not_finite_stops_and_names_step_and_terms(job: Job) -> None:
    recorder, value = Recorder(), math.nan
    work = job("student", {"training.checkpoint_every": "2steps"}, recorder)
    work.task.method = Poisoned(value)
    with pytest.raises(NonFiniteError, match=rf"epoch 2, step 3: loss = {value}, ce = \d") as error:
        fit(work)
    assert f"kd = {value}" in str(error.value)
    assert str(work.run.checkpoints) in str(error.value)
    state = load_latest(work.run.checkpoints, pytest.fail)
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 1)
    assert all(bool(torch.isfinite(kept).all()) for kept in state["model"].values())
    assert all(bool(p.isfinite().all()) for p in work.task.model.parameters())
    assert len(recorder.steps) == 5


def test_a_gradient_that_is_not_finite_names_its_layer(job: Job) -> None:
    work = job("student")
    before = dict(copy.deepcopy(work.task.model).named_parameters())
    parameter = work.task.model.get_parameter("layer2.0.conv1.weight")
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match=r"gradients of layer2\.0\.conv1\.weight\. Try"):
        fit(work)
    assert_same(before, dict(work.task.model.named_parameters()))


def test_a_loss_alone_that_is_not_finite_blames_no_layer(job: Job) -> None:
    work = job("teacher")
    method = work.task.method
    work.task.method = lambda *given: {"loss": method(*given)["loss"] + math.inf}
    with pytest.raises(NonFiniteError, match="the gradients here are finite"):
        fit(work)
