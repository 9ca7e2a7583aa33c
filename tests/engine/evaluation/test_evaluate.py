"""Accuracy at every time step in one pass, and what is kept of each image's answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.conftest import DATASET, SPEC, make_config, make_context
from tser_cli.base.errors import Interrupted
from tser_cli.data.base import Dataset, DataSpec, TensorSource
from tser_cli.data.loaders import build_eval_loader, evenly_spread
from tser_cli.energy.joules import energy_up_to
from tser_cli.energy.prices import load_profile
from tser_cli.engine.evaluation.early_exit import Rule, offline_exits, stops_of
from tser_cli.engine.evaluation.evaluate import (
    BINS,
    SUMS,
    Evaluation,
    answered,
    cumulative_mean,
    evaluate,
    evaluate_split,
    keep_answers,
    means,
    sums_of,
)
from tser_cli.engine.runs import folder, networks
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.models.base import Classifier
from tser_cli.report.csv_files import PER_TIMESTEP
from tser_cli.report.predictions import HELD_OUT, PREDICTIONS, read_predictions
from tser_cli.report.statistics import mcnemar

STEPS, IMAGES, CLASSES = 3, 101, 5
Counted = Callable[..., Evaluation]


class Table(Classifier):
    """Knows the logits of every image; an image is its own number, as grey value of 255."""

    def __init__(self, logits_TMK: torch.Tensor, spiking: bool = True) -> None:
        super().__init__()
        self.logits_TMK, self.spiking = logits_TMK, spiking
        self.asked: list[int] = []

    def forward(self, images_NCHW: torch.Tensor, timesteps: int = 1) -> torch.Tensor:
        assert not self.training
        self.asked.append(timesteps)
        chosen = self.logits_TMK[:, (images_NCHW[:, 0, 0, 0] * 255).round().long()]
        return chosen[:timesteps] if self.spiking else chosen[0]


class CountedTable(Table):
    """The same with a layer whose operations can be counted."""

    def __init__(self, logits_TMK: torch.Tensor) -> None:
        super().__init__(logits_TMK)
        self.layer = torch.nn.Linear(1, 2)

    def forward(self, images_NCHW: torch.Tensor, timesteps: int = 1) -> torch.Tensor:
        self.layer(images_NCHW.flatten(1))
        return super().forward(images_NCHW, timesteps)

    def input_kinds(self) -> dict[str, str]:
        return {"layer": "real"}


@pytest.fixture(name="logits_TMK")
def random_logits() -> torch.Tensor:
    return 3 * torch.randn(STEPS, IMAGES, CLASSES)


@pytest.fixture
def numbered() -> Dataset:
    """101 test images of one pixel, each its own number."""
    pixels = torch.arange(IMAGES, dtype=torch.uint8).view(-1, 1, 1, 1)
    labels = torch.randint(0, CLASSES, (IMAGES,))
    spec = DataSpec("digits", 1, 1, 1, tuple("abcde"), mean=(0.0,), std=(1.0,))
    return Dataset(spec, TensorSource(pixels, labels), TensorSource(pixels, labels))


@pytest.fixture
def counted(numbered: Dataset, runtime: Runtime) -> Counted:
    """`counted(model, batch)`: the model's evaluation on the numbered images."""

    def count(
        model: Classifier,
        batch: int,
        timesteps: int = STEPS,
        of: tuple[int, int] = (0, 1),
        **more: Any,
    ) -> Evaluation:
        config = make_config({"training.eval_batch_size": batch})
        loader = build_eval_loader(numbered, "test", config, rank=of[0], world=of[1])
        return evaluate(model, loader, more.pop("runtime", runtime), timesteps, **more)

    return count


@pytest.fixture
def student(wake: Callable[[Classifier], Classifier]) -> Classifier:
    """A network whose neurons spike."""
    return wake(networks.build("resnet20", SPEC, make_config(), spiking=True))


def argmax(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / math.fsum(powers) for power in powers]


def by_hand(logits: list[list[list[float]]], labels: list[int]) -> list[dict[str, Any]]:
    """The rows that plain Python counts, image by image: logits [t][image][class]."""
    images, rows, chance = len(labels), [], max(Counter(labels).values()) / len(labels)
    for t in range(len(logits)):
        right = right_mean = 0
        loss, entropy, confidence = [], [], []
        for n, label in enumerate(labels):
            now = logits[t][n]
            so_far = [math.fsum(logits[s][n][k] for s in range(t + 1)) for k in range(len(now))]
            p = softmax(now)
            right += argmax(now) == label
            right_mean += argmax(so_far) == label
            loss.append(-math.log(p[label]))
            entropy.append(-math.fsum(q * math.log(q) for q in p))
            confidence.append(max(p))
        rows.append(
            {
                "timesteps": len(logits),
                "t": t + 1,
                "accuracy_at_t": right / images,
                "accuracy_cumulative": right_mean / images,
                "correct_at_t": right,
                "correct_cumulative": right_mean,
                "images": images,
                "loss_at_t": math.fsum(loss) / images,
                "entropy_at_t": math.fsum(entropy) / images,
                "confidence_at_t": math.fsum(confidence) / images,
                "teacher_accuracy": None,
                "chance": chance,
                "p_chance": math.fsum(
                    math.comb(images, k) * chance**k * (1 - chance) ** (images - k)
                    for k in range(right_mean, images + 1)
                ),
                "p_teacher": None,
            }
        )
    return rows


def assert_rows_agree(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        for key, value in other.items():
            exact = not key.startswith(("loss", "entropy", "confidence", "p_chance"))
            assert row[key] == (value if exact else pytest.approx(value, rel=1e-11)), key


@pytest.mark.parametrize("batch", [1, 7, 50, 100, 101, 128])
def test_a_plain_count_agrees_for_any_batch_size(
    counted: Counted, logits_TMK: torch.Tensor, numbered: Dataset, batch: int
) -> None:
    evaluation = counted(Table(logits_TMK), batch)
    expected = by_hand(logits_TMK.double().tolist(), numbered.test.labels.tolist())
    assert_rows_agree(evaluation.rows(), expected)
    assert evaluation.images == IMAGES
    assert evaluation.timesteps == STEPS
    assert evaluation.accuracy == expected[-1]["accuracy_cumulative"]
    assert len({row["correct_cumulative"] for row in expected}) > 1  # the steps do differ


def test_rows_have_the_columns_of_the_table_less_the_labels(
    counted: Counted, logits_TMK: torch.Tensor
) -> None:
    rows = counted(Table(logits_TMK), 32).rows()
    labels = ("run", "dataset", "split", "method", "teacher", "student")
    assert [(*labels, *row) for row in rows] == [tuple(PER_TIMESTEP)] * STEPS


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_count_every_image_once(
    counted: Counted, logits_TMK: torch.Tensor, world: int
) -> None:
    whole = counted(Table(logits_TMK), 8)
    parts = [counted(Table(logits_TMK), 8, of=(rank, world)) for rank in range(world)]
    assert sum(part.images for part in parts) == IMAGES
    sums = [sum(column) for column in zip(*(part.correct_at for part in parts), strict=True)]
    assert sums == whole.correct_at


def test_a_real_network_counts_as_the_plain_loop_does(
    student: Classifier, runtime: Runtime
) -> None:
    loader = build_eval_loader(DATASET, "test", make_config({"training.eval_batch_size": 4}))
    evaluation = evaluate(student, loader, runtime, 2)
    with torch.no_grad():
        alone = [student(image, 2) for batch in loader for image in batch.images_NCHW.split(1)]
    logits = torch.cat(alone, dim=1).double().tolist()
    expected = by_hand(logits, DATASET.test.labels.tolist())
    for row, other in zip(evaluation.rows(), expected, strict=True):
        assert row["correct_at_t"] == other["correct_at_t"]
        assert row["correct_cumulative"] == other["correct_cumulative"]
        assert row["loss_at_t"] == pytest.approx(other["loss_at_t"], rel=1e-4)
    assert logits[0] != logits[1]


def test_an_ann_is_one_time_step(
    counted: Counted, logits_TMK: torch.Tensor, numbered: Dataset
) -> None:
    evaluation = counted(Table(logits_TMK, spiking=False), 16, timesteps=4)
    labels = numbered.test.labels.tolist()
    assert_rows_agree(evaluation.rows(), by_hand(logits_TMK[:1].double().tolist(), labels))


def test_the_teacher_is_counted_on_the_same_images(
    counted: Counted, logits_TMK: torch.Tensor, numbered: Dataset
) -> None:
    teacher = Table(torch.randn(1, IMAGES, CLASSES), spiking=False).eval()
    evaluation = counted(Table(logits_TMK), 16, teacher=teacher)
    right_M = (teacher.logits_TMK[0].argmax(-1) == numbered.test.labels).numpy()
    right = int(right_M.sum())
    assert 0 < right < IMAGES
    assert evaluation.teacher_correct == right
    assert {row["teacher_accuracy"] for row in evaluation.rows()} == {right / IMAGES}
    for t, row in enumerate(evaluation.rows(), 1):
        answered_M = logits_TMK[:t].mean(0).argmax(-1) == numbered.test.labels
        assert row["p_teacher"] == pytest.approx(mcnemar(answered_M.numpy(), right_M))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back_and_no_gradient_is_kept(
    counted: Counted, logits_TMK: torch.Tensor, training: bool
) -> None:
    model = Table(logits_TMK).train(training)
    modes = []
    model.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    counted(model, 64)
    assert model.training is training
    assert set(modes) == {False}


def test_one_pass_asks_for_all_steps_and_whether_to_stop_after_each_batch(
    counted: Counted, logits_TMK: torch.Tensor, runtime: Runtime
) -> None:
    class Longest(Runtime):
        """As if another process had five batches."""

        def largest(self, value: int) -> int:
            return max(value, 5)

    model, asked = Table(logits_TMK), list[int]()
    counted(model, 40, check_stop=lambda: asked.append(len(model.asked)))
    assert model.asked == [STEPS] * 3
    assert asked == [1, 2, 3]
    # every process asks equally often
    longest = Longest(runtime.accelerator, runtime.memory_format)
    counted(model, 40, runtime=longest, check_stop=lambda: asked.append(0))
    assert len(asked) == 3 + 5

    def stop() -> None:
        raise Interrupted(15)

    model = Table(logits_TMK)
    with pytest.raises(Interrupted):
        counted(model, 40, check_stop=stop)
    assert model.asked == [STEPS]


def test_answers_and_counts_are_kept_where_they_are_asked_for(
    counted: Counted, logits_TMK: torch.Tensor, numbered: Dataset
) -> None:
    plain = counted(Table(logits_TMK), 40)
    assert (plain.answers, plain.counts) == (None, None)
    full = counted(CountedTable(logits_TMK), 40, count=True)
    assert full.rows() == plain.rows()
    answers, labels = full.answers, numbered.test.labels
    assert (full.counts.images, full.counts.timesteps) == (IMAGES, STEPS)
    assert [(c.layer.name, c.layer.macs) for c in full.counts.layers] == [("layer", 2)]
    assert answers.index_I.tolist() == list(range(IMAGES))
    assert torch.equal(answers.labels_I, labels)
    logits, mean = logits_TMK.double(), cumulative_mean(logits_TMK.double())
    assert torch.equal(answers.prediction_TI, logits.argmax(-1))
    assert torch.equal(answers.correct_TI, logits.argmax(-1) == labels)
    assert torch.equal(answers.prediction_cumulative_TI, mean.argmax(-1))
    assert torch.equal(answers.correct_cumulative_TI, mean.argmax(-1) == labels)
    for t, image in ((0, 0), (1, 57), (2, IMAGES - 1)):
        p, p_mean = softmax(logits[t, image].tolist()), softmax(mean[t, image].tolist())
        assert answers.loss_TI[t, image].item() == pytest.approx(-math.log(p[labels[image]]))
        expected = -math.log(p_mean[labels[image]])
        assert answers.loss_cumulative_TI[t, image].item() == pytest.approx(expected)
        expected = -math.fsum(q * math.log(q) for q in p)
        assert answers.entropy_TI[t, image].item() == pytest.approx(expected)
        assert answers.confidence_TI[t, image].item() == pytest.approx(max(p))
        expected = -math.fsum(q * math.log(q) for q in p_mean)
        assert answers.entropy_cumulative_TI[t, image].item() == pytest.approx(expected)
        assert answers.confidence_cumulative_TI[t, image].item() == pytest.approx(max(p_mean))


def test_losses_and_calibration_errors_are_those_of_a_loop_over_images(
    counted: Counted, logits_TMK: torch.Tensor, numbered: Dataset
) -> None:
    rows = counted(Table(logits_TMK), 7).rows()
    both = {"at_t": logits_TMK.double(), "cumulative": cumulative_mean(logits_TMK.double())}
    for name, of_TMK in both.items():
        for t in range(STEPS):
            losses, gaps = list[float](), [list[float]() for _ in range(15)]
            for logits_K, label in zip(of_TMK[t], numbered.test.labels.tolist(), strict=True):
                p = softmax(logits_K.tolist())
                losses.append(-math.log(p[label]))
                place = next(n for n in range(15) if max(p) <= (n + 1) / 15)
                gaps[place].append(max(p) - (argmax(p) == label))
            sums = [math.fsum(of_bin) for of_bin in gaps]
            signed = [math.copysign(1.0, sums[n]) * gap for n in range(15) for gap in gaps[n]]
            for column, values in ((f"loss_{name}", losses), (f"ece_{name}", signed)):
                mean, deviation = np.mean(values), np.std(values, ddof=1)
                reach = 1.96 * deviation / math.sqrt(IMAGES)
                row = rows[t]
                assert row[column] == pytest.approx(mean, rel=1e-9)
                assert row[f"{column}_low"] == pytest.approx(max(mean - reach, 0.0), rel=1e-4)
                assert row[f"{column}_high"] == pytest.approx(mean + reach, rel=1e-4)


def test_an_interval_of_losses_is_not_below_0() -> None:
    one_of_ten = torch.tensor([1.0], dtype=torch.float64)  # ten losses, of which nine are 0
    ((mean, low, high),) = means(one_of_ten, one_of_ten, 10)
    assert (mean, low) == (0.1, 0.0)
    assert high == pytest.approx(0.1 + 1.96 * math.sqrt(0.09 / 9), rel=1e-4)


def test_a_confidence_at_an_edge_belongs_to_the_bin_below() -> None:
    confidence_TI = torch.tensor([[9 / 15, 0.56]], dtype=torch.float64)
    answers = SimpleNamespace(
        labels_I=torch.zeros(2),
        **dict.fromkeys(("confidence_TI", "confidence_cumulative_TI"), confidence_TI),
        **dict.fromkeys(("correct_TI", "correct_cumulative_TI"), torch.tensor([[True, False]])),
        **dict.fromkeys(("loss_TI", "loss_cumulative_TI", "entropy_TI"), torch.zeros(1, 2)),
    )
    gap_B = sums_of(answers, None)[len(SUMS) : len(SUMS) + BINS, 0]  # type: ignore[arg-type]
    assert gap_B[8].item() == pytest.approx(0.6 - 1.0 + 0.56)
    assert gap_B.count_nonzero() == 1


def test_agreement_with_the_teacher_where_it_is_right_and_where_it_is_wrong(
    counted: Counted, logits_TMK: torch.Tensor, numbered: Dataset
) -> None:
    taught_MK = torch.randn(1, IMAGES, CLASSES)
    taught_MK[0, :40, 0] += 9.0  # the teacher and the student err alike on some
    logits_TMK[:, :40, 0] += 5.0
    teacher = Table(taught_MK, spiking=False).eval()
    evaluation = counted(Table(logits_TMK), 7, teacher=teacher)
    said_M, labels_M = taught_MK[0].argmax(-1), numbered.test.labels
    for t, row in enumerate(evaluation.rows()):
        alike_M = cumulative_mean(logits_TMK.double())[t].argmax(-1) == said_M
        for name, of_M in (("right", said_M == labels_M), ("wrong", said_M != labels_M)):
            expected = int(alike_M[of_M].sum()) / int(of_M.sum())
            assert 0 < expected == row[f"agreement_teacher_{name}"]
    alone = counted(Table(logits_TMK), 7).rows()[0]
    assert alone["agreement_teacher_right"] is alone["agreement_teacher_wrong"] is None
    numbered.test.labels[:] = said_M
    faultless = counted(Table(logits_TMK), 7, teacher=teacher).rows()[-1]
    assert faultless["agreement_teacher_wrong"] is None


@pytest.mark.parametrize("batch", [2, 4])  # of three processes, one has none of 2 images
def test_answers_and_counts_of_several_processes_are_put_in_the_images_order(
    student: Classifier, runtime: Runtime, batch: int
) -> None:
    class Gathered(Runtime):
        """Keeps what this process shares, and returns what `others` shared too."""

        shared: Any
        others: list[Any]

        def gather(self, value: Any) -> list[Any]:
            Gathered.shared = value
            return [*Gathered.others, value]

    config = make_config({"training.eval_batch_size": batch})
    whole = evaluate(student, build_eval_loader(DATASET, "test", config), runtime, 2, count=True)
    of_rank = Gathered(runtime.accelerator, runtime.memory_format)
    Gathered.others = []
    for rank in range(3):
        loader = build_eval_loader(DATASET, "test", config, rank=rank, world=3)
        together = evaluate(student, loader, of_rank, 2, count=True)
        Gathered.others.append(Gathered.shared)
    shares = [len(part[0].index_I) if part else 0 for _, part in Gathered.others]
    assert shares == ([6, 5, 0] if batch == 2 else [5, 3, 3])
    assert together.answers.index_I.tolist() == list(range(len(DATASET.test)))
    assert torch.equal(together.answers.prediction_TI, whole.answers.prediction_TI)
    assert torch.equal(together.answers.correct_TI, whole.answers.correct_TI)
    assert together.largest_class == whole.largest_class
    assert together.counts.images == whole.counts.images == len(DATASET.test)
    for mine, other in zip(together.counts.layers, whole.counts.layers, strict=True):
        assert mine.layer == other.layer
        for name in ("nonzero_TI", "events_TI", "value_TI", "executed_T"):
            assert getattr(mine, name).tolist() == getattr(other, name).tolist(), name
    spikes = whole.counts.layers[1].value_TI[0].tolist()
    assert len(set(spikes)) > 1  # else the order would not matter


def test_some_images_of_a_split_are_evenly_spread(student: Classifier) -> None:
    assert evenly_spread(3, 9).tolist() == [0, 1, 2]
    assert evenly_spread(100, 100).tolist() == list(range(100))
    assert evenly_spread(11, 4).tolist() == [0, 2, 5, 8]
    context = make_context(make_config({"training.eval_batch_size": 3}))
    some = evaluate_split(student, context, "test", 2, count=True, images=4)
    assert some.images == some.counts.images == 4
    assert some.answers.index_I.tolist() == [0, 2, 5, 8]
    whole = evaluate_split(student, context, "test", 2, count=True)
    chosen = whole.answers.prediction_TI[:, [0, 2, 5, 8]]
    assert torch.equal(some.answers.prediction_TI, chosen)


def test_a_requested_stop_reaches_the_pass_over_a_split(student: Classifier) -> None:
    stop = StopRequest(lambda text: None)
    stop.signal = 15
    with pytest.raises(Interrupted) as error:
        evaluate_split(student, make_context(make_config()), "test", 1, stop=stop)
    assert error.value.exit_code == 143


def test_cumulative_mean_of_three_steps() -> None:
    logits = torch.tensor([[[1.0, 4.0]], [[3.0, 0.0]], [[2.0, -1.0]]])
    assert cumulative_mean(logits).tolist() == [[[1.0, 4.0]], [[2.0, 2.0]], [[2.0, 1.0]]]


PROFILE = load_profile("horowitz-45nm-fp32")


def test_the_file_says_what_the_pass_found(tmp_path: Path, student: Classifier) -> None:
    config = make_config({"data.validation_fraction": 0.25})
    context, run = make_context(config), folder.create(tmp_path, "student", config)
    full = evaluate_split(student, context, "test", 3, count=True)
    keep_answers(run, student, context, full)
    found = read_predictions(run.folder / PREDICTIONS)
    stops = stops_of(found, PROFILE)
    assert stops.energy_TI == pytest.approx(energy_up_to(full.counts, PROFILE))
    for threshold in (0.2, 0.4, 0.6, 1.0):
        exits = offline_exits(full.answers, Rule("confidence", threshold))
        accuracy = stops.accuracy(np.array([threshold]))[0]
        assert accuracy == pytest.approx(float(exits.correct_I.double().mean()))
        spent = torch.from_numpy(stops.energy_TI).gather(0, (exits.step_I - 1)[None]).mean()
        assert stops.energy(np.array([threshold]))[0] == pytest.approx(float(spent))
    held_out = read_predictions(run.folder / HELD_OUT)
    assert len(held_out.labels_I) == 6
    own = evaluate_split(student, context, "validation", 3)
    assert held_out.right().sum() == own.correct_cumulative[-1]


def test_a_network_that_can_t_stop_keeps_its_classes_alone(
    student: Classifier, tmp_path: Path
) -> None:
    context = make_context(make_config())
    full = evaluate_split(student, context, "test", 2, count=True)
    assert answered(full, can_stop=False).steps is None
    run = folder.create(tmp_path, "student", context.config)
    keep_answers(run, student, context, full)
    assert read_predictions(run.folder / PREDICTIONS) is not None
    assert read_predictions(run.folder / HELD_OUT) is None  # there are no held-out images
