"""Early exit: an image stops at the first step whose cumulative prediction is sure enough.

It really stops: images that left are not computed further. What they spent is taken from the exact
integers of a full pass, which also says where each image ought to stop; both must agree.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tser_cli.data.loaders import Split, build_eval_loader
from tser_cli.energy import Profile, energy_up_to
from tser_cli.engine.evaluation.per_timestep import Answers, Evaluation, as_measured
from tser_cli.engine.runs.finished_run import FinishedRun
from tser_cli.engine.runtime.context import Context
from tser_cli.engine.runtime.processes import Runtime
from tser_cli.errors import ConfigError
from tser_cli.losses.functional import entropy
from tser_cli.models import Classifier
from tser_cli.models.stepping import Stepper
from tser_cli.report.csv_files import early_exit_schema, write_csv
from tser_cli.visible import cut

CONFIDENCE, ENTROPY = "confidence", "entropy"
MOST_THRESHOLDS = 1000


@dataclass(frozen=True)
class Rule:
    """Stop where the confidence is at least, or the entropy (nats) at most, `threshold`.

    `chosen_on`: the split on which the threshold was chosen to keep `budget_pj`, "" where a person
    named it.
    """

    criterion: str
    threshold: float
    chosen_on: str = ""
    budget_pj: float | None = None

    def sure(self, mean_NK: Tensor) -> Tensor:
        """Return which images may stop, from the mean of their logits up to this step: [N, K] ->
        [N].
        """
        if self.criterion == CONFIDENCE:
            return mean_NK.softmax(-1).amax(-1) >= self.threshold
        return entropy(mean_NK) <= self.threshold


@dataclass(frozen=True)
class Exits:
    """Of each image, in order: the step at which it stopped (from 1), and whether it was right."""

    step_I: Tensor
    correct_I: Tensor


def parse_thresholds(text: str, criterion: str, flag: str) -> list[Rule]:
    """Return the rules of "0.8,0.9". Raises ConfigError where one is no number that can decide."""
    rules = []
    if text.count(",") >= MOST_THRESHOLDS:
        raise ConfigError(
            f"{flag}: {text.count(',') + 1:,} thresholds; at most {MOST_THRESHOLDS:,} are taken"
        )
    for part in text.split(","):
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
        kept = rows_to_keep(open_R, count)
        if len(kept) < len(open_R):
            stepper.keep(kept)
            image_R, open_R, total_RK = image_R[kept], open_R[kept], total_RK[kept]
    return step_N, correct_N


def rows_to_keep(open_R: Tensor, batch: int) -> Tensor:
    """Return the places of the rows to go on with: the open ones, and others up to a round number.

    Round are the eighths of `batch`. For every number of images that it has not met before, the
    library below the convolutions makes new code, which takes longer than a few images do.
    """
    part = math.ceil(batch / 8)
    number = min(math.ceil(int(open_R.sum()) / part) * part, len(open_R))
    return open_R.int().argsort(descending=True, stable=True)[:number]


@torch.inference_mode()
def run_exits(
    model: Classifier, context: Context, split: Split, timesteps: int, rule: Rule
) -> Exits:
    """Evaluate a split with early exit."""
    runtime: Runtime = context.runtime
    steps, corrects = [], []
    with Stepper(as_measured(model, context)) as stepper:
        for batch in build_eval_loader(context.dataset, split, context.config):
            images, labels = runtime.images(batch.images_NCHW), batch.labels_N.to(runtime.device)
            with runtime.autocast():
                step_N, correct_N = exit_batch(stepper, images, labels, timesteps, rule)
            steps.append(step_N.cpu())
            corrects.append(correct_N.cpu())
    return Exits(torch.cat(steps), torch.cat(corrects))


def offline_exits(answers: Answers, rule: Rule) -> Exits:
    """Say where each image ought to stop, from the cumulative predictions of a full pass."""
    if rule.criterion == CONFIDENCE:
        sure_TI = answers.confidence_cumulative_TI >= rule.threshold
    else:
        sure_TI = answers.entropy_cumulative_TI <= rule.threshold
    sure_TI = sure_TI.clone()
    sure_TI[-1] = True
    index_I = sure_TI.int().argmax(0)
    correct_I = answers.correct_cumulative_TI.gather(0, index_I[None])[0]
    return Exits(index_I + 1, correct_I)


def row(rule: Rule, exits: Exits, full: Evaluation, profile: Profile) -> dict[str, Any]:
    """Return one line: accuracy, mean steps, share of images per exit step, the energy spent."""
    assert full.answers is not None and full.counts is not None, "a counted pass"
    answers, offline = full.answers, offline_exits(full.answers, rule)
    energy_TI = torch.from_numpy(energy_up_to(full.counts, profile))
    images = len(exits.step_I)
    spent_I = energy_TI.gather(0, (exits.step_I - 1)[None])[0]
    timesteps = full.timesteps
    differ = (exits.step_I != offline.step_I) | (exits.correct_I != offline.correct_I)
    spent = float(spent_I.mean())
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
        "differing_images": int(differ.sum()),
        "chosen_on": rule.chosen_on,
        "budget_pj": rule.budget_pj,
        "kept": None if rule.budget_pj is None else int(spent <= rule.budget_pj),
    }


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
