"""Run a network once over the images of a split: accuracy at every time step, and operations.

The same pass gives what the tables show (sums over images), and, if asked, what each image was
answered at each step and the operations that were counted on the way. Accuracies are quotients of
integer counts: they do not depend on the size of batches or the number of processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from operator import length_hint
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.data.events import EventSource
from tser_cli.data.loaders import Batch, Split, build_eval_loader
from tser_cli.energy.counts import Counts, joined
from tser_cli.energy.joules import operations
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.networks import Counting, counting_of
from tser_cli.engine.runs.opened import Context, make_check_stop
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.losses.base import entropy
from tser_cli.models.base import Classifier
from tser_cli.models.integers import batch_size, has_integer_layers, integer
from tser_cli.report import statistics
from tser_cli.report.predictions import HELD_OUT, PREDICTIONS, Predictions, Steps, write_predictions

JOINED = 32  # batches after which answers are joined: many small tensors hold memory apart
StartCounting = Callable[[Classifier, int], AbstractContextManager[Counting]]


class Mean(NamedTuple):
    """A mean over images with its 95 % interval: how far other images may lead."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Sums and means over the images of a split; element t - 1 is time step t.

    `largest_class`: the images of the most frequent class. `both_correct`: those that the teacher
    and the mean of steps 1..t have right, `same_error` those on which they err alike, none without
    a teacher. `loss`: cross entropy in nats. `calibration_error`: see `calibration_error`.
    `answers` and `counts` are there only where they were asked for, and with them `milliseconds_I`,
    how long each sample lasts, where its frames are equal spans of time.
    """

    images: int
    correct_at: list[int]
    correct_cumulative: list[int]
    loss_at: list[Mean]
    loss_cumulative: list[Mean]
    calibration_error_at: list[Mean]
    calibration_error_cumulative: list[Mean]
    entropy_sum: list[float]
    confidence_sum: list[float]
    largest_class: int
    both_correct: list[int]
    same_error: list[int]
    teacher_correct: int | None = None
    answers: Answers | None = None
    counts: Counts | None = None
    milliseconds_I: Tensor | None = None

    @property
    def timesteps(self) -> int:
        return len(self.correct_at)

    @property
    def accuracy(self) -> float:
        """Return the accuracy of the time-averaged logits, as papers report it."""
        return self.correct_cumulative[-1] / self.images

    @property
    def teacher_accuracy(self) -> float | None:
        """Return the teacher's accuracy on the same images, None without a teacher."""
        return None if self.teacher_correct is None else self.teacher_correct / self.images

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict a time step, with the numeric columns of per_timestep.csv."""
        return [
            {
                "timesteps": self.timesteps,
                "t": t + 1,
                "accuracy_at_t": self.correct_at[t] / self.images,
                "accuracy_cumulative": self.correct_cumulative[t] / self.images,
                "correct_at_t": self.correct_at[t],
                "correct_cumulative": self.correct_cumulative[t],
                "images": self.images,
                "loss_at_t": self.loss_at[t].mean,
                "entropy_at_t": self.entropy_sum[t] / self.images,
                "confidence_at_t": self.confidence_sum[t] / self.images,
                "teacher_accuracy": self.teacher_accuracy,
                "chance": self.largest_class / self.images,
                "p_chance": statistics.binomial_tail(
                    self.correct_cumulative[t], self.images, self.largest_class / self.images
                ),
                "p_teacher": self._p_teacher(t),
                **_columns("loss_at_t", self.loss_at[t], mean=False),
                **_columns("loss_cumulative", self.loss_cumulative[t]),
                **_columns("ece_at_t", self.calibration_error_at[t]),
                **_columns("ece_cumulative", self.calibration_error_cumulative[t]),
                **self._agreement(t),
            }
            for t in range(self.timesteps)
        ]

    def _agreement(self, t: int) -> dict[str, float | None]:
        right = self.teacher_correct
        wrong = None if right is None else self.images - right
        return {
            "agreement_teacher_right": self.both_correct[t] / right if right else None,
            "agreement_teacher_wrong": self.same_error[t] / wrong if wrong else None,
        }

    def _p_teacher(self, t: int) -> float | None:
        if self.teacher_correct is None:
            return None
        both = self.both_correct[t]
        return statistics.sign_test(self.correct_cumulative[t] - both, self.teacher_correct - both)


def _columns(name: str, value: Mean, mean: bool = True) -> dict[str, float]:
    ends = {f"{name}_low": value.low, f"{name}_high": value.high}
    return {name: value.mean, **ends} if mean else ends


@dataclass(frozen=True)
class Answers:
    """What a network answered for each of I images at each of T time steps.

    `index_I`: the images' places in the split. `prediction_TI`, `correct_TI`, `loss_TI` (nats),
    `entropy_TI` (nats) and `confidence_TI` (the largest probability) are of the logits of step t
    alone; the fields called cumulative are of the mean of the logits of steps 1..t.
    """

    index_I: Tensor
    labels_I: Tensor
    prediction_TI: Tensor
    correct_TI: Tensor
    loss_TI: Tensor
    entropy_TI: Tensor
    confidence_TI: Tensor
    prediction_cumulative_TI: Tensor
    correct_cumulative_TI: Tensor
    loss_cumulative_TI: Tensor
    entropy_cumulative_TI: Tensor
    confidence_cumulative_TI: Tensor

    def on_cpu(self) -> Answers:
        """Return the same answers in the memory of the host."""
        return Answers(*(of_images.cpu() for of_images in vars(self).values()))

    @classmethod
    def joined(cls, parts: Iterable[Answers]) -> Answers:
        """Return the answers of all parts together, in the order of their images' places."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        joined = [torch.cat(column, dim=-1) for column in columns]
        # index_I is the first of the fields
        order = joined[0].argsort()
        return cls(*(column[..., order] for column in joined))


@torch.inference_mode()
def evaluate(
    model: Classifier,
    loader: Iterable[Batch],
    runtime: Runtime,
    timesteps: int,
    teacher: Classifier | None = None,
    check_stop: Callable[[], None] | None = None,
    count: bool = False,
    counting: StartCounting = counting_of,
) -> Evaluation:
    """Evaluate all time steps of `model` in one pass over `loader`.

    Every image counts once over all processes. `count`: also count the operations, by `counting`,
    and keep what each image was answered. `check_stop` is called after each batch and may raise; it
    is called equally often in every process. The model's mode is put back afterwards.
    """
    was_training, check = model.training, check_stop or (lambda: None)
    model.eval()  # a norm that used the batch's own statistics would mix the images
    steps, kept = timesteps if model.spiking else 1, list[Answers]()
    # Read once, at the end: to read a sum after each batch would make the CPU wait.
    sums = torch.zeros(len(SUMS) + 2 * BINS, steps, dtype=torch.float64, device=runtime.device)
    of_class = Counter[int]()
    with counting(model, steps) if count else nullcontext() as counter:
        for batch in loader:
            of_class.update(batch.labels_N.tolist())
            images, labels = runtime.images(batch.images_NCHW), batch.labels_N.to(runtime.device)
            with runtime.autocast():
                logits_TNK = logits_of(model, images, steps)
                taught = None if teacher is None else teacher(images)
            # index: processes and batches may come in any order, the images of a table do not
            answers = answers_of(logits_TNK, labels, batch.indices_N.to(runtime.device))
            sums += sums_of(answers, None if taught is None else taught.argmax(-1))
            if count:
                # on the host: a large test set's answers would fill the device
                kept.append(answers.on_cpu())
                if len(kept) == JOINED:
                    kept = [Answers.joined(kept)]
            check()
    # Another process may have more batches: all must come together equally often.
    for _ in range(runtime.largest(length_hint(loader)) - length_hint(loader)):
        check()
    model.train(was_training)
    mine = (Answers.joined(kept), counter.counts()) if counter is not None and kept else None
    return _of_all_processes(runtime, sums, (of_class, mine), teacher is not None)


def _of_all_processes(
    runtime: Runtime,
    sums: Tensor,
    mine: tuple[Counter[int], tuple[Answers, Counts] | None],
    taught: bool,
) -> Evaluation:
    totals = runtime.sum(sums).cpu()
    of = dict(zip(SUMS, totals, strict=False))
    gap_TB, gap_cumulative_TB = totals[len(SUMS) :].T.tensor_split([BINS], dim=1)
    images = int(of["images"][0])
    gathered: list[tuple[Counter[int], tuple[Answers, Counts] | None]] = runtime.gather(mine)
    evaluation = Evaluation(
        images=images,
        correct_at=of["correct_at"].int().tolist(),
        correct_cumulative=of["correct_cumulative"].int().tolist(),
        loss_at=means(of["loss_at"], of["loss_at_squares"], images),
        loss_cumulative=means(of["loss_cumulative"], of["loss_cumulative_squares"], images),
        calibration_error_at=calibration_error(gap_TB, of["gap_squares"], images),
        calibration_error_cumulative=calibration_error(
            gap_cumulative_TB, of["gap_cumulative_squares"], images
        ),
        entropy_sum=of["entropy"].tolist(),
        confidence_sum=of["confidence"].tolist(),
        largest_class=max(sum((classes for classes, _ in gathered), Counter[int]()).values()),
        both_correct=of["both_correct"].int().tolist(),
        same_error=of["same_error"].int().tolist(),
        teacher_correct=int(of["teacher_correct"][0]) if taught else None,
    )
    parts = [part for _, part in gathered if part]  # none of a process without images
    if not parts:
        return evaluation
    # by their places in the split: the processes took turns at its batches
    order = torch.cat([answers.index_I for answers, _ in parts]).argsort().numpy()
    return replace(
        evaluation,
        answers=Answers.joined(answers for answers, _ in parts),
        counts=joined([counts for _, counts in parts], order),
    )


SUMS = (
    *("images", "correct_at", "correct_cumulative", "entropy", "confidence"),
    *("loss_at", "loss_at_squares", "loss_cumulative", "loss_cumulative_squares"),
    *("gap_squares", "gap_cumulative_squares", "teacher_correct", "both_correct", "same_error"),
)
BINS = 15  # of confidence: (0, 1/15], ..., (14/15, 1], as Guo et al. (below) count


def sums_of(answers: Answers, taught_N: Tensor | None) -> Tensor:
    """Return the sums over a batch: a row each of SUMS, then the gaps by bin at t and cumulative.

    [len(SUMS) + 2 BINS, T]. A gap is confidence minus right (0 or 1). Float64 is exact for counts;
    of the others it leaves the order's trace below what a table shows.
    """
    both = (
        (answers.confidence_TI, answers.correct_TI),
        (answers.confidence_cumulative_TI, answers.correct_cumulative_TI),
    )
    gaps = [confidence_TI - right_TI.double() for confidence_TI, right_TI in both]
    losses = (answers.loss_TI, answers.loss_cumulative_TI)
    columns = [
        *(torch.ones_like(gaps[0]), answers.correct_TI, answers.correct_cumulative_TI),
        *(answers.entropy_TI, answers.confidence_TI),
        *(power for loss_TI in losses for power in (loss_TI, loss_TI**2)),
        *(gap_TI**2 for gap_TI in gaps),
    ]
    if taught_N is None:
        columns += [torch.zeros_like(gaps[0])] * 3
    else:
        right_N = taught_N == answers.labels_I
        alike_TI = answers.prediction_cumulative_TI == taught_N
        columns += [right_N.expand_as(alike_TI), alike_TI & right_N, alike_TI & ~right_N]
    edges = torch.arange(1, BINS, device=gaps[0].device, dtype=torch.float64) / BINS
    for (confidence_TI, _), gap_TI in zip(both, gaps, strict=True):
        bin_TI = torch.bucketize(confidence_TI, edges)
        columns += [torch.where(bin_TI == place, gap_TI, 0.0) for place in range(BINS)]
    return torch.stack([of_TI.double().sum(1) for of_TI in columns])


def means(sum_T: Tensor, squares_T: Tensor, images: int) -> list[Mean]:
    """Return the mean at each step with its 95 % interval, from the sums of values and squares.

    Of values that are never below 0, and so the interval is not either.
    """
    mean_T = sum_T / images
    # never below 0, where rounding may lead
    variance_T = (squares_T / images - mean_T**2).clamp_min(0.0)
    reach_T = statistics.NORMAL * (variance_T / max(images - 1, 1)).sqrt()
    ends = torch.stack([mean_T, (mean_T - reach_T).clamp_min(0.0), mean_T + reach_T], dim=1)
    return [Mean(*row) for row in ends.tolist()]


def calibration_error(gap_TB: Tensor, squares_T: Tensor, images: int) -> list[Mean]:
    """Return the expected calibration error with 15 bins at each step, with its 95 % interval.

    The mean distance of confidence and accuracy within the bins of confidence, weighted by their
    images (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3). `gap_TB`:
    the sums of confidence minus right in each bin; `squares_T`: of their squares. With the sign of
    its bin's sum a gap is a value of one image, and the error their mean: the interval is that of a
    mean. Chance lifts the error of a perfect network above 0 too, the more so the fewer images
    there are, and the interval with it: it often leaves 0 out.
    """
    found = means(gap_TB.abs().sum(1), squares_T, images)
    return [Mean(error, low, min(high, 1.0)) for error, low, high in found]


def answers_of(logits_TNK: Tensor, labels_N: Tensor, index_N: Tensor) -> Answers:
    """Return the answers to one batch, computed in float64.

    In float32 the last bits of a batch's losses depend on its size, and so would the tables.
    """
    logits_TNK = logits_TNK.double()
    mean_TNK = cumulative_mean(logits_TNK)
    steps = logits_TNK.shape[0]
    # one call over T * N rows, time outermost: the labels repeat as a whole
    losses, mean_losses = (
        F.cross_entropy(of_TNK.flatten(0, 1), labels_N.repeat(steps), reduction="none")
        for of_TNK in (logits_TNK, mean_TNK)
    )
    predicted_TN, predicted_mean_TN = logits_TNK.argmax(-1), mean_TNK.argmax(-1)
    return Answers(
        index_I=index_N,
        labels_I=labels_N,
        prediction_TI=predicted_TN,
        correct_TI=predicted_TN == labels_N,
        loss_TI=losses.view(steps, -1),
        entropy_TI=entropy(logits_TNK),
        confidence_TI=logits_TNK.softmax(-1).amax(-1),
        prediction_cumulative_TI=predicted_mean_TN,
        correct_cumulative_TI=predicted_mean_TN == labels_N,
        loss_cumulative_TI=mean_losses.view(steps, -1),
        entropy_cumulative_TI=entropy(mean_TNK),
        confidence_cumulative_TI=mean_TNK.softmax(-1).amax(-1),
    )


def cumulative_mean(logits_TNK: Tensor) -> Tensor:
    """Return the mean of the logits of steps 1..t, for every t: [T, N, K] -> [T, N, K]."""
    steps = torch.arange(1, logits_TNK.shape[0] + 1, device=logits_TNK.device)
    return logits_TNK.cumsum(0) / steps.view(-1, 1, 1)


def logits_of(model: Classifier, images_NCHW: Tensor, timesteps: int) -> Tensor:
    """Return an SNN's logits [T, N, K]; an ANN's logits count as one time step."""
    logits: Tensor = model(images_NCHW, timesteps)
    return logits if model.spiking else logits.unsqueeze(0)


def evaluate_split(
    model: Classifier,
    context: Context,
    split: Split,
    timesteps: int,
    teacher: Classifier | None = None,
    stop: StopRequest | None = None,
    *,
    count: bool = False,
    images: int = 0,
    counting: StartCounting = counting_of,
) -> Evaluation:
    """Evaluate on a split of the context's data set; see `evaluate`.

    `images`: take only so many, evenly spread over the split, since the images of a folder are
    sorted by class; 0 takes all. Raises Interrupted between batches once `stop` is requested.
    """
    runtime, config, model = context.runtime, context.config, as_measured(model, context)
    # Integer kernels have a batch size of their own; one that was asked for stands.
    fitting, spec = 0, context.dataset.spec
    if has_integer_layers(model) and not config.training.eval_batch_size:
        fitting = batch_size(spec.height, spec.width)
    loader = build_eval_loader(
        context.dataset,
        split,
        config,
        rank=runtime.rank,
        world=runtime.world,
        images=images,
        batch_size=fitting,
    )
    # asked together by all processes, so that none waits for one that has stopped
    check_stop = make_check_stop(stop, runtime) if stop else None
    found = evaluate(model, loader, runtime, timesteps, teacher, check_stop, count, counting)
    if found.counts is not None:
        found = replace(found, counts=replace(found.counts, frames=spec.frames > 0))
    source = context.dataset.test if split == "test" else context.dataset.train
    if found.answers and isinstance(source, EventSource) and config.data.frames_by == "time":
        found = replace(found, milliseconds_I=source.milliseconds_M[found.answers.index_I])
    return found


def as_measured(model: Classifier, context: Context) -> Classifier:
    """Return `model`, or on a CPU, where its weights are integers, a copy that computes with them.

    Their spikes differ by rounding at most.
    """
    # the kernels are those of oneDNN, which is for CPUs
    on_cpu = context.runtime.device.type == "cpu"
    return integer(model) if on_cpu and context.config.performance.integer_kernels else model


def keep_answers(
    run: Run,
    model: Classifier,
    context: Context,
    test: Evaluation,
    stop: StopRequest | None = None,
) -> None:
    """Write the answers for the test images, and measure and write those for held-out ones.

    A threshold of early exit is chosen on the latter. All processes measure; rank 0 writes. Raises
    Interrupted or RunError.
    """
    passes = {PREDICTIONS: test}
    # A threshold that was chosen on the test images would be measured on what it was fitted to.
    if context.config.data.validation_fraction and model.steps_alone:
        passes[HELD_OUT] = evaluate_split(
            model, context, "validation", test.timesteps, stop=stop, count=True
        )

    def write() -> None:
        for name, evaluation in passes.items():
            found = answered(evaluation, model.steps_alone)
            write_predictions(run.folder / name, **vars(found))

    context.runtime.on_main(write)


def answered(evaluation: Evaluation, can_stop: bool) -> Predictions:
    """Return the predictions of a counted pass; what early exit needs only where it is possible."""
    answers, counts = evaluation.answers, evaluation.counts
    assert answers is not None and counts is not None, "a counted pass"
    macs_T, acs_TI, narrow_TI = (of_T.cumsum(axis=0) for of_T in operations(counts))
    confidence_IT = answers.confidence_cumulative_TI.float().numpy().T
    lasting = evaluation.milliseconds_I
    milliseconds_I = None if lasting is None else lasting.numpy()
    steps = Steps(confidence_IT, macs_T, acs_TI.T, narrow_TI.T, milliseconds_I)
    return Predictions(
        answers.labels_I.numpy(),
        answers.prediction_TI.T.numpy(),
        answers.prediction_cumulative_TI.T.numpy(),
        steps if can_stop else None,
    )
