"""What a report must run the network for: early exit, answers image by image, memory."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tser_cli.data.pictures import thumbnail
from tser_cli.energy import Profile, energy_up_to
from tser_cli.energy.headline import against_ann
from tser_cli.engine.commands.report_duels import Assumptions, duels_beyond
from tser_cli.engine.commands.report_files import MOST_STEPS, label, thinned
from tser_cli.engine.evaluation.early_exit import CONFIDENCE, Rule, offline_exits, row
from tser_cli.engine.evaluation.kept_answers import answered
from tser_cli.engine.evaluation.per_timestep import Answers, Evaluation, evaluate_split
from tser_cli.engine.runs.finished_run import FinishedRun, open_finished
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.training.energy_budget import profile_of
from tser_cli.errors import DataError
from tser_cli.report.page_values import Answer, Duel, Gallery, Missing, Picture
from tser_cli.report.predictions import Predictions
from tser_cli.report.progress import Progress

THRESHOLDS = (
    *(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99),
    *(0.995, 0.998, 0.999, 0.9995, 0.9999, 0.99999),
)
SIDE = 64  # pixels of the longer side of a picture on the page
RIGHT_TO_WRONG = 3  # so many errors are shown for each right answer


@dataclass(frozen=True)
class MeasureRequest:
    """How to measure for a report; `images` 0: all. `pictures`: how many are to be shown."""

    images: int
    pictures: int
    changes: Mapping[str, Any]
    progress: Progress


@dataclass(frozen=True)
class Measured:
    """What one counted pass over the test images gave.

    `images`: how many; `classes`: their names. `steps` and `exits`: see `Tradeoff`; () for an ANN.
    `assumptions`: see `energy.headline.against_ann`. `duels`: those of more detailed counts.
    """

    images: int
    classes: tuple[str, ...]
    predictions: Predictions
    steps: tuple[Mapping[str, Any], ...]
    exits: tuple[Mapping[str, Any], ...]
    assumptions: Assumptions
    duels: tuple[Duel, ...]
    gallery: Gallery | Missing


def measure(run: Run, request: MeasureRequest) -> Measured:
    """Run the network of a finished run over its test images. Raises TserError."""
    opened = open_finished(run, dict(request.changes), request.progress)
    model, context = opened.loaded.model, opened.context
    steps = opened.config.model.timesteps if model.spiking else 1
    request.progress.say(f"running {run.name} over the test images")
    full = evaluate_split(model, context, "test", steps, count=True, images=request.images)
    assert full.answers is not None and full.counts is not None, "a counted pass"
    classes = opened.loaded.classes or context.dataset.spec.classes
    profile = profile_of(opened.config)
    spent_T = energy_up_to(full.counts, profile).mean(axis=1)
    spiking = model.spiking
    return Measured(
        images=full.images,
        classes=tuple(classes),
        predictions=answered(full, can_stop=False),
        steps=tuple(_step(full, t, float(spent_T[t])) for t in range(steps) if spiking),
        exits=tuple(_exits(full, profile) if spiking and model.steps_alone else ()),
        assumptions=against_ann(full.counts, profile, None)["assumptions"] if spiking else {},
        duels=tuple(duels_beyond(opened, profile) if spiking else ()),
        gallery=_gallery(opened, full.answers, classes, request.pictures),
    )


def _step(full: Evaluation, t: int, energy_pj: float) -> dict[str, Any]:
    right = full.correct_cumulative[t]
    return {"t": t + 1, "energy_pj": energy_pj, "accuracy": right / full.images}


def _exits(full: Evaluation, profile: Profile) -> list[dict[str, Any]]:
    """Return the rows of early_exit.csv for a range of thresholds, without those that repeat.

    Where an image would stop is known from the full pass, which early exit agrees with.
    """
    if full.timesteps < 2:
        return []
    assert full.answers is not None, "a counted pass"
    rules = [Rule(CONFIDENCE, threshold) for threshold in THRESHOLDS]
    rows = [row(rule, offline_exits(full.answers, rule), full, profile) for rule in rules]
    return list({(line["mean_steps"], line["correct"]): line for line in reversed(rows)}.values())[
        ::-1
    ]


def _gallery(
    opened: FinishedRun, answers: Answers, classes: Sequence[str], most: int
) -> Gallery | Missing:
    right_I = answers.correct_cumulative_TI[-1]
    sure_I = answers.confidence_cumulative_TI[-1]
    wrong = _ranked(~right_I, -sure_I)
    few_right = _ranked(right_I, sure_I)[: max(1, most // (RIGHT_TO_WRONG + 1))]
    names = [label(name) for name in classes]
    try:
        shown = [
            tuple(_picture(opened, answers, names, place) for place in chosen)
            for chosen in (wrong[: most - len(few_right)], few_right)
        ]
    except DataError as error:
        return Missing(str(error))
    return Gallery(shown[0], shown[1], len(wrong), len(right_I))


def _ranked(chosen_I: Tensor, key_I: Tensor) -> list[int]:
    """Return the places of the chosen images, by their keys."""
    order = torch.argsort(key_I, stable=True)
    return [int(place) for place in order if chosen_I[place]]


def _picture(opened: FinishedRun, answers: Answers, names: Sequence[str], place: int) -> Picture:
    index = int(answers.index_I[place])
    image_CHW = opened.context.dataset.test.image(index).cpu()
    steps = thinned(range(len(answers.prediction_TI)), MOST_STEPS)
    prediction_T = answers.prediction_TI[:, place]
    confidence_T, correct_T = answers.confidence_TI[:, place], answers.correct_TI[:, place]
    final = int(answers.prediction_cumulative_TI[-1, place])
    return Picture(
        source="data:image/png;base64," + base64.b64encode(thumbnail(image_CHW, SIDE)).decode(),
        index=index,
        size=(int(image_CHW.shape[-1]), int(image_CHW.shape[-2])),
        label=names[int(answers.labels_I[place])],
        answers=tuple(
            Answer(t + 1, names[int(prediction_T[t])], float(confidence_T[t]), bool(correct_T[t]))
            for t in steps
        ),
        final=Answer(
            len(answers.prediction_TI),
            names[final],
            float(answers.confidence_cumulative_TI[-1, place]),
            bool(answers.correct_cumulative_TI[-1, place]),
        ),
    )
