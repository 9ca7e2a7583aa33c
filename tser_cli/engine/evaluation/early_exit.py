"""Early exit: an image stops at the first step whose cumulative prediction is sure enough.

It really stops: images that left are not computed further (`Stepper`, `run_exits`). What they spent
is taken from the exact integers of a full pass, which also says where each image ought to stop;
both must agree.

The threshold is chosen (`Stops`) to keep an energy budget, or to reach an accuracy. All thresholds
are tried at once. With m_t the largest confidence of an image up to step t, the image continues
after step t exactly where m_t is below the threshold. So a sum over images, as a function of the
threshold, changes at the values m_t alone, and sorting them gives every value of it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tser_cli.base.errors import ConfigError, cut
from tser_cli.data.loaders import Split, build_eval_loader
from tser_cli.energy.counts import FloatArray
from tser_cli.energy.joules import energy_up_to, priced
from tser_cli.energy.prices import Profile
from tser_cli.engine.evaluation.evaluate import Answers, Evaluation, as_measured
from tser_cli.engine.runs.opened import Context, FinishedRun
from tser_cli.losses.base import entropy
from tser_cli.models.base import Classifier
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.report.csv_files import early_exit_schema, write_csv
from tser_cli.report.predictions import Predictions
from tser_cli.settings.fields import joules

CONFIDENCE, ENTROPY = "confidence", "entropy"
MOST_THRESHOLDS = 1000


@dataclass(frozen=True)
class Rule:
    """Stop where the confidence is at least, or the entropy (nats) at most, `threshold`.

    `chosen_on`: the split on which the threshold was chosen to keep `budget_pj`, "" where you
    named it.
    """

    criterion: str
    threshold: float
    chosen_on: str = ""
    budget_pj: float | None = None

    def sure(self, mean_NK: Tensor) -> Tensor:
        """Return which images may stop, from the mean of their logits so far: [N, K] -> [N]."""
        if self.criterion == CONFIDENCE:
            return mean_NK.softmax(-1).amax(-1) >= self.threshold
        return entropy(mean_NK) <= self.threshold


@dataclass(frozen=True)
class Exits:
    """Of each image, in order: the step at which it stopped (from 1), and whether it was right."""

    step_I: Tensor
    correct_I: Tensor


def early_exit(
    opened: FinishedRun,
    rules: list[Rule],
    full: Evaluation,
    split: Split,
    path: Path | None,
    profile: Profile,
) -> list[dict[str, Any]]:
    """Evaluate every rule on `split`, write the table to `path`, if any; return its rows.

    `full`: the counted pass over the same images with all time steps. `differing_images` counts
    images that the stepwise run and the full pass treat differently. It is 0 but for the rounding
    of floating point between batches of other sizes.
    """
    rows = []
    for rule in rules:
        exits = run_exits(opened.loaded.model, opened.context, split, full.timesteps, rule)
        line = row(rule, exits, full, profile)
        rows.append({"run": opened.run.name, "dataset": opened.config.data.name, **line})
        if line["differing_images"]:
            opened.context.progress.warn(
                f"{rule.criterion} {rule.threshold}: {line['differing_images']} images stop "
                "elsewhere than in the full pass, by rounding"
            )
    if path is not None:
        write_csv(path, rows, early_exit_schema(full.timesteps))
    return rows


def row(rule: Rule, exits: Exits, full: Evaluation, profile: Profile) -> dict[str, Any]:
    """Return one line: accuracy, mean steps, share of images per exit step, the energy spent.

    Of events, where frames are by time, also how many milliseconds of them had been seen.
    """
    assert full.answers is not None and full.counts is not None, "a counted pass"
    answers, offline = full.answers, offline_exits(full.answers, rule)
    # from the full pass: an image costs the same whatever others are computed along
    energy_TI = torch.from_numpy(energy_up_to(full.counts, profile))
    images, timesteps = len(exits.step_I), full.timesteps
    differ = (exits.step_I != offline.step_I) | (exits.correct_I != offline.correct_I)
    lasting_I = None if full.milliseconds_I is None else full.milliseconds_I.double()
    spent = float(energy_TI.gather(0, (exits.step_I - 1)[None])[0].mean())
    return {
        "profile": profile.name,
        "criterion": rule.criterion,
        "threshold": rule.threshold,
        "timesteps": timesteps,
        "images": images,
        "correct": int(exits.correct_I.sum()),
        "accuracy": int(exits.correct_I.sum()) / images,
        "accuracy_full": int(answers.correct_cumulative_TI[-1].sum()) / images,
        "mean_steps": float(exits.step_I.double().mean()),
        **{
            f"share_exit_{t}": int((exits.step_I == t).sum()) / images
            for t in range(1, timesteps + 1)
        },
        "energy_pj": spent,
        "energy_full_pj": float(energy_TI[-1].mean()),
        # frame t ends at t / T of the sample
        "latency_ms": None
        if lasting_I is None
        else float((lasting_I * exits.step_I).mean()) / timesteps,
        "latency_full_ms": None if lasting_I is None else float(lasting_I.mean()),
        "differing_images": int(differ.sum()),
        "chosen_on": rule.chosen_on,
        "budget_pj": rule.budget_pj,
        "kept": None if rule.budget_pj is None else int(spent <= rule.budget_pj),
    }


@torch.inference_mode()
def run_exits(
    model: Classifier, context: Context, split: Split, timesteps: int, rule: Rule
) -> Exits:
    """Evaluate a split with early exit."""
    runtime, steps, corrects = context.runtime, [], []
    with Stepper(as_measured(model, context)) as stepper:
        for batch in build_eval_loader(context.dataset, split, context.config):
            images, labels = runtime.images(batch.images_NCHW), batch.labels_N.to(runtime.device)
            with runtime.autocast():
                step_N, correct_N = exit_batch(stepper, images, labels, timesteps, rule)
            # on the CPU, as in `evaluate`: a large test set would fill the device
            steps.append(step_N.cpu())
            corrects.append(correct_N.cpu())
    return Exits(torch.cat(steps), torch.cat(corrects))


def exit_batch(
    stepper: Stepper, images_NCHW: Tensor, labels_N: Tensor, timesteps: int, rule: Rule
) -> tuple[Tensor, Tensor]:
    """Run one batch step by step, dropping images as they become sure; fields of `Exits`."""
    count, device = len(labels_N), labels_N.device
    step_N = torch.full((count,), timesteps, device=device)
    correct_N = torch.zeros(count, dtype=torch.bool, device=device)
    # R rows are computed, each of one image; some are of images that have been decided
    image_R = torch.arange(count, device=device)
    open_R = torch.ones(count, dtype=torch.bool, device=device)
    stepper.start(images_NCHW)
    # in float64, as the full pass: a sum of float32 might decide otherwise at the threshold
    total_RK: Tensor | float = 0.0
    for t in range(1, timesteps + 1):
        total_RK = total_RK + stepper.step().double()
        mean_RK = total_RK / t
        leaving_R = open_R & rule.sure(mean_RK) if t < timesteps else open_R
        gone = image_R[leaving_R]
        step_N[gone] = t
        correct_N[gone] = mean_RK[leaving_R].argmax(-1) == labels_N[gone]
        open_R = open_R & ~leaving_R
        if not open_R.any():
            break
        # decided rows may be computed along, see rows_to_keep: they no longer count
        kept = rows_to_keep(open_R, count)
        # dropping rows copies the potentials of all that stay
        if len(kept) < len(open_R):
            stepper.keep(kept)
            image_R, open_R, total_RK = image_R[kept], open_R[kept], total_RK[kept]
    return step_N, correct_N


def rows_to_keep(open_R: Tensor, batch: int) -> Tensor:
    """Return the places of the rows to continue with: the open ones, and a few to a round number.

    Round are the eighths of `batch`. For every number of images that it has not met before, the
    library below the convolutions makes new code, which takes longer than a few images do.
    """
    part = math.ceil(batch / 8)
    number = min(math.ceil(int(open_R.sum()) / part) * part, len(open_R))
    return open_R.int().argsort(descending=True, stable=True)[:number]


def offline_exits(answers: Answers, rule: Rule) -> Exits:
    """Say where each image ought to stop, from the cumulative predictions of a full pass."""
    if rule.criterion == CONFIDENCE:
        sure_TI = answers.confidence_cumulative_TI >= rule.threshold
    else:
        sure_TI = answers.entropy_cumulative_TI <= rule.threshold
    sure_TI = sure_TI.clone()
    sure_TI[-1] = True  # the last step decides, sure or not
    index_I = sure_TI.int().argmax(0)
    correct_I = answers.correct_cumulative_TI.gather(0, index_I[None])[0]
    return Exits(index_I + 1, correct_I)


def parse_thresholds(text: str, criterion: str, flag: str) -> list[Rule]:
    """Return the rules of "0.8,0.9". Raises ConfigError where one is no number that can decide."""
    rules = []
    if text.count(",") >= MOST_THRESHOLDS:
        raise ConfigError(
            f"{flag}: {text.count(',') + 1:,} thresholds; at most {MOST_THRESHOLDS:,} are allowed"
        )
    for part in text.split(","):
        # float() alone would take nan, 1_0 and words such as infinity
        if not re.fullmatch(r"\s*\d*\.?\d+(e-?\d+)?\s*", part):
            raise ConfigError(
                f'{flag}: "{cut(part.strip(), 80)}" is no threshold; write 0.8,0.9,0.99'
            )
        threshold = float(part)
        if criterion == CONFIDENCE and not 0.0 < threshold <= 1.0:
            raise ConfigError(f"{flag} {part.strip()}: a confidence is above 0, at most 1")
        if not math.isfinite(threshold):
            raise ConfigError(f"{flag} {part.strip()}: it must be finite")
        rules.append(Rule(criterion, threshold))
    return rules


class Stepper:
    """Inside the `with`, the neurons of `model` keep their membrane potential between steps.

    `start` shows a batch of images, each `step` gives the logits [N, K] of the next time step,
    `keep` drops images, which are not computed any further. The logits are those of
    `model(images, timesteps=T)`, step by step.
    """

    def __init__(self, model: Classifier) -> None:
        assert model.spiking, "an ANN has no time steps"
        self._model = model
        self._neurons = [m for m in model.modules() if isinstance(m, SpikingNeuron)]
        self._current: Tensor | None = None
        # those still to be shown, each [N, C, H, W], where samples have a time axis
        self._frames: list[Tensor] | None = None

    def __enter__(self) -> Stepper:
        self._stream(True)
        return self

    def __exit__(self, *error: object) -> None:
        self._stream(False)

    def _stream(self, streaming: bool) -> None:
        for neuron in self._neurons:
            neuron.set_streaming(streaming)

    def start(self, images_NCHW: Tensor) -> None:
        """Begin with new images; every membrane starts anew.

        The stem is computed once, or of samples [N, T, C, H, W] at each step.
        """
        self._stream(True)
        self._frames = list(images_NCHW.unbind(1)) if images_NCHW.dim() == 5 else None
        self._current = self._model.begun(images_NCHW) if self._frames is None else None

    def step(self) -> Tensor:
        """Logits [N, K] of the next time step, for the images that are left."""
        if self._frames is not None:
            self._current = self._model.begun(self._frames.pop(0))
        assert self._current is not None, "start() comes first"
        # one step: the neurons remember, and see no axis of time
        return self._model.body(self._current, 1)

    def keep(self, chosen: Tensor) -> None:
        """Continue with the chosen images: those where a mask is true, or those at these places."""
        assert self._current is not None, "start() comes first"
        self._current = self._current[chosen]
        if self._frames is not None:
            self._frames = [frame[chosen] for frame in self._frames]
        for neuron in self._neurons:
            neuron.keep(chosen)


ALWAYS, NEVER = 0.0, math.inf
"""The thresholds at which every image stops at the first step, and none before the last."""
CERTAINTY = 0.95
ROUNDING = 1e-12  # of a quotient of integers, less a margin


@dataclass(frozen=True)
class Stops:
    """What stopping each of I images at each of T steps gives.

    `right_TI`: 1 where the mean of the logits up to the step is right. `confidence_TI`: its largest
    probability. `energy_TI`: energy up to and with the step, pJ. `seen_TI`: milliseconds of events
    seen up to its end, where frames are by time.
    """

    right_TI: FloatArray
    confidence_TI: FloatArray
    energy_TI: FloatArray
    seen_TI: FloatArray | None = None

    @property
    def images(self) -> int:
        return int(self.right_TI.shape[1])

    def thresholds(self) -> FloatArray:
        """Return every threshold that treats an image differently, ascending, and `NEVER`."""
        reached = largest_so_far(self.confidence_TI).ravel()
        return np.concatenate([[ALWAYS], np.unique(reached), [NEVER]])

    def accuracy(self, thresholds_C: FloatArray) -> FloatArray:
        """Return the accuracy at each threshold, a fraction."""
        return sums(self.right_TI, self.confidence_TI, thresholds_C) / self.images

    def energy(self, thresholds_C: FloatArray) -> FloatArray:
        """Return the mean energy of an image at each threshold, pJ."""
        return sums(self.energy_TI, self.confidence_TI, thresholds_C) / self.images

    def latency(self, threshold: float) -> float | None:
        """Return the mean milliseconds of events that were seen; None where that is not known."""
        if self.seen_TI is None:
            return None
        return float(sums(self.seen_TI, self.confidence_TI, np.array([threshold]))[0]) / self.images

    def shares(self, threshold: float) -> list[float]:
        """Return the share of images that stop at each step, [T]."""
        steps, chosen = len(self.right_TI), np.array([threshold])
        # 1 at one step and 0 at all others: such sums count the images that stop there
        here_TI = np.eye(steps)[:, :, None].repeat(self.images, axis=2)
        return [
            float(sums(here_TI[t], self.confidence_TI, chosen)[0]) / self.images
            for t in range(steps)
        ]

    def deviation(self, thresholds_C: FloatArray) -> FloatArray:
        """Return the standard deviation of the energy over the images at each threshold, pJ."""
        centre = self.energy_TI[-1].mean()  # near the values: squares then lose no digits
        squares = sums((self.energy_TI - centre) ** 2, self.confidence_TI, thresholds_C)
        variance = squares / self.images - (self.energy(thresholds_C) - centre) ** 2
        unbiased = np.maximum(variance, 0.0) * self.images / max(1, self.images - 1)
        deviation_C: FloatArray = np.sqrt(unbiased)
        return deviation_C


def stops_of(answered: Predictions, profile: Profile) -> Stops:
    """Return the stops of a network that can stop between its steps."""
    steps = answered.steps
    assert steps is not None, "a counted pass of a network that can stop"
    narrow_TI = 0 if steps.narrow_IT is None else steps.narrow_IT.T
    seen_TI, lasting_I = None, steps.milliseconds_I
    if lasting_I is not None:
        ends_T = np.arange(1, len(steps.macs_T) + 1) / len(steps.macs_T)
        seen_TI = ends_T[:, None] * lasting_I.astype(np.float64)
    return Stops(
        (answered.cumulative_IT == answered.labels_I[:, None]).T.astype(np.float64),
        steps.confidence_IT.T.astype(np.float64),
        priced(steps.macs_T[:, None], steps.accumulates_IT.T, profile, narrow_TI),
        seen_TI,
    )


def largest_so_far(confidence_TI: FloatArray) -> FloatArray:
    """Return the largest confidence up to each step but the last, [T - 1, I]."""
    largest: FloatArray = np.maximum.accumulate(confidence_TI[:-1], axis=0)
    return largest


def sums(values_TI: FloatArray, confidence_TI: FloatArray, thresholds_C: FloatArray) -> FloatArray:
    """Sum over the images the value at the step where each stops, for each threshold: [C].

    An image stops at the first step whose confidence is at least the threshold, else at the last.
    """
    reached = largest_so_far(confidence_TI).ravel()
    # Sorted by the threshold below which it stops there, each pair (image, step) moves its image
    # one step ahead: so one cumulative sum holds the totals of all thresholds.
    order = np.argsort(-reached, kind="stable")
    # what changes in the sum where an image stops at a step, and not at the next one
    gains = (values_TI[:-1] - values_TI[1:]).ravel()[order]
    gained = np.concatenate([[0.0], np.cumsum(gains)])
    stopping = np.searchsorted(-reached[order], -thresholds_C, side="right")
    total: FloatArray = values_TI[-1].sum() + gained[stopping]
    return total


def keep_budget(stops: Stops, budget_pj: float, test_images: int) -> float:
    """Return the largest threshold that keeps a budget on other images too, with 95 % certainty.

    `stops` are of images that are not the test's. The mean energy of I images differs from that of
    `test_images` others by chance; so what has to keep the budget is the mean plus 1.645 standard
    errors of that difference, sd x sqrt(1 / I + 1 / test_images). Where not even stopping at the
    first step leaves so much room, that is what is returned. Raises ConfigError where it costs more
    than the budget.
    """
    # Room for chance: a threshold that just keeps the budget on these images would break it on
    # every second set of others.
    thresholds_C = stops.thresholds()
    least = float(stops.energy(thresholds_C[:1])[0])
    if least > budget_pj:
        raise ConfigError(
            f"--energy-budget: the first time step alone costs {joules(least)} an image, more than "
            f"{joules(budget_pj)}; early exit saves no more than the other steps. Allow more, or "
            "distil a student that costs less"
        )
    # both sets are samples: the one that the threshold is chosen on, and the test images
    error = math.sqrt(1 / stops.images + 1 / test_images)
    reach_C = NormalDist().inv_cdf(CERTAINTY) * error * stops.deviation(thresholds_C)
    keeps_C = stops.energy(thresholds_C) + reach_C <= budget_pj
    # the largest: images then stop as late as the budget allows
    return float(thresholds_C[keeps_C].max(initial=ALWAYS))


def reach_accuracy(stops: Stops, accuracy: float) -> float | None:
    """Return the smallest threshold with at least that accuracy: it costs the least energy.

    None where no threshold reaches it.
    """
    thresholds_C = stops.thresholds()
    enough_C = stops.accuracy(thresholds_C) >= accuracy - ROUNDING
    return float(thresholds_C[enough_C][0]) if enough_C.any() else None
