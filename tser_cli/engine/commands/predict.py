"""Classify files of images, or of events, with a finished student, step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tser_cli.base.errors import ConfigError, DataError
from tser_cli.base.files import check_folder, foreign
from tser_cli.data import events, image_files, transforms
from tser_cli.engine.evaluation.evaluate import cumulative_mean, logits_of
from tser_cli.engine.runs.networks import counting_of
from tser_cli.engine.runs.opened import FinishedRun, open_finished, select_run
from tser_cli.report.csv_files import prediction_schema, write_csv
from tser_cli.settings.wing_options import PredictRequest

BATCH = 32  # files are decoded as they come: a folder of thousands need not fit into memory


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    `confidence` at t is the largest probability of the mean of the logits of steps 1..t; `stop_t`
    the first step at which it reaches the threshold, else T. `sop_value` and `macs` are the image's
    operations over all steps.
    """

    image: str
    name: str
    confidence: tuple[float, ...]
    stop_t: int
    sop_value: int
    macs: int


@dataclass(frozen=True)
class Unread:
    """An image that can't be read, and why."""

    image: str
    error: str


@dataclass(frozen=True)
class Predicted:
    """All answers, in the order in which the images were named, and where their table lies."""

    answers: tuple[Prediction | Unread, ...]
    table: Path | None

    @property
    def unread(self) -> tuple[Unread, ...]:
        """Return the images that could not be read."""
        return tuple(answer for answer in self.answers if isinstance(answer, Unread))


def predict(request: PredictRequest) -> Predicted:
    """Classify image files; one that can't be read is named in the result, the others are not lost.

    Raises ConfigError, DataError for a folder without images, and RunError.
    """
    if not 0.0 < request.threshold <= 1.0:
        raise ConfigError(f"--threshold {request.threshold}: a confidence is above 0, at most 1")
    named = map(Path, (*request.images, str(request.run)))
    if not_ours := [why for path in named if (why := foreign(path))]:
        raise ConfigError(
            f"{not_ours[0]}. tser predict classifies images with a run (--run); docs/deployment.md "
            "shows how other programs run the file"
        )
    if not request.images:
        raise ConfigError("no image is named; give files, folders, or - for a list on the input")
    run, others = select_run(request.run, request.runs_dir), Counter[str]()
    suffixes = tuple(events.READERS) if run.config().data.frames else image_files.SUFFIXES
    files = image_files.picture_files(request.images, others, suffixes)
    if others:
        request.progress.warn(image_files.passed_over(others, suffixes))
    if request.output is not None:
        check_folder(request.output)
    # only now is a network loaded: a mistyped name is known at once
    opened = open_finished(run, request.changes, request.progress)
    test = opened.context.dataset.test
    if opened.context.dataset.spec.frames and not isinstance(test, events.EventSource):
        raise ConfigError(
            f"{run.name} was trained on frames that were made elsewhere: how files of events would "
            "become such frames is not known"
        )
    answers: list[Prediction | Unread] = []
    for start in range(0, len(files), BATCH):
        answers += _answers(opened, files[start : start + BATCH], request.threshold)
    if request.output is not None:
        steps = [len(answer.confidence) for answer in answers if isinstance(answer, Prediction)]
        schema = prediction_schema(max(steps, default=1))
        write_csv(request.output, [_row(answer) for answer in answers], schema)
    return Predicted(tuple(answers), request.output)


def _answers(opened: FinishedRun, files: list[Path], threshold: float) -> list[Prediction | Unread]:
    """Return the answers of some files, in their order; a file named twice is read once."""
    spec = opened.context.dataset.spec
    read: dict[Path, torch.Tensor] = {}
    errors: dict[Path, str] = {}
    for path in files:
        try:
            if spec.frames:
                read[path] = events.sample(path, spec, opened.config.data)
            else:
                read[path] = image_files.fitted_picture(path, spec.image_shape, spec.shorter)
        except DataError as error:
            errors[path] = str(error)
    said = _predictions(opened, read, threshold) if read else {}
    return [said.get(path) or Unread(str(path), errors[path]) for path in files]


def _predictions(
    opened: FinishedRun, read: dict[Path, torch.Tensor], threshold: float
) -> dict[Path, Prediction]:
    model, context = opened.loaded.model, opened.context
    spec, steps = context.dataset.spec, opened.config.model.timesteps if model.spiking else 1
    images = transforms.as_shown(torch.stack(list(read.values())), spec)
    with torch.inference_mode(), counting_of(model, steps) as counter:
        # in float64, as `tser evaluate` does it: the same image stops at the same step
        logits_TNK = logits_of(model, context.runtime.images(images), steps).double().cpu()
    layers = counter.counts().layers
    sops_N = sum(layer.value_TI.sum(axis=0) for layer in layers)
    # the same for every image: multiply-accumulates leave no zeros out
    macs = sum(int(layer.step_macs.sum()) for layer in layers)
    probabilities_TNK = cumulative_mean(logits_TNK).softmax(-1)
    confidence_TN, class_N = probabilities_TNK.amax(-1), probabilities_TNK[-1].argmax(-1)
    sure_TN = confidence_TN >= threshold
    # who is never sure stops after the last step
    sure_TN[-1] = True
    stop_N = sure_TN.int().argmax(0) + 1
    classes = opened.loaded.classes or spec.classes
    return {
        path: Prediction(
            image=str(path),
            name=classes[int(class_N[n])],
            confidence=tuple(confidence_TN[:, n].tolist()),
            stop_t=int(stop_N[n]),
            sop_value=int(sops_N[n]),
            macs=macs,
        )
        for n, path in enumerate(read)
    }


def _row(answer: Prediction | Unread) -> dict[str, Any]:
    """Return a line of predictions.csv."""
    if isinstance(answer, Unread):
        return {"image": answer.image, "error": answer.error}
    confidences = {f"confidence_{t}": value for t, value in enumerate(answer.confidence, start=1)}
    named = {"image": answer.image, "class": answer.name, "stop_t": answer.stop_t}
    return {**named, **confidences, "sop_value": answer.sop_value, "macs": answer.macs}
