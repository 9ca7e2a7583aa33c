"""Classify image files with a finished student, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tser_cli.base.errors import ConfigError, DataError
from tser_cli.base.files import check_folder
from tser_cli.data.image_files import fitted_picture, picture_files
from tser_cli.data.transforms import normalise
from tser_cli.energy.counts import Counts
from tser_cli.engine.evaluation.evaluate import cumulative_mean, logits_of
from tser_cli.engine.runs.networks import counting_of
from tser_cli.engine.runs.opened import open_finished, select_run
from tser_cli.export.consumers import one_by_one
from tser_cli.export.graph import needs
from tser_cli.report.csv_files import prediction_schema, write_csv
from tser_cli.settings.wing_options import PredictRequest

BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    `confidence` at t is the largest probability of the mean of the logits of steps 1..t; `stop_t`
    the first step at which it reaches the threshold, else T. `sop_value` and `macs` are the image's
    operations over all steps, None from an ONNX file.
    """

    image: str
    name: str
    confidence: tuple[float, ...]
    stop_t: int
    sop_value: int | None
    macs: int | None


@dataclass(frozen=True)
class Unread:
    """An image that can't be read, and why."""

    image: str
    error: str


@dataclass(frozen=True)
class Predictions:
    """All answers, in the order in which the images were named."""

    source: str
    timesteps: int
    threshold: float
    answers: tuple[Prediction | Unread, ...]
    table: Path | None

    @property
    def unread(self) -> tuple[Unread, ...]:
        """Return the images that could not be read."""
        return tuple(answer for answer in self.answers if isinstance(answer, Unread))

    def as_json(self) -> str:
        """Return all answers as a JSON list; those that failed have `image` and `error`."""
        return json.dumps([asdict(answer) for answer in self.answers], indent=2)


@dataclass(frozen=True)
class Predictor:
    """A network with what it needs to know of pictures; `shorter` as for `fitted_picture`.

    `answer`: normalised images [N, C, H, W] -> logits [T, N, K] and, of each image, synaptic
    operations and multiply-accumulates [2, N], or None where they can't be counted.
    """

    source: str
    shape: tuple[int, int, int]
    shorter: int
    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str]
    answer: Callable[[Tensor], tuple[Tensor, Tensor | None]]


def predict(request: PredictRequest) -> Predictions:
    """Classify image files; one that can't be read is named in the result and the rest goes on.

    Raises ConfigError, DataError for a folder without images, and RunError.
    """
    if not 0.0 < request.threshold <= 1.0:
        raise ConfigError(f"--threshold {request.threshold}: a confidence is above 0, at most 1")
    if request.run is not None and request.model is not None:
        raise ConfigError("--run and --model: name one of them, a run or an exported file")
    files = picture_files(request.images)
    if not files:
        raise ConfigError("no image is named; give files, folders, or - for a list on the input")
    if request.output is not None:
        check_folder(request.output)
    predictor = onnx_predictor(request.model) if request.model else run_predictor(request)
    answers: list[Prediction | Unread] = []
    for start in range(0, len(files), BATCH):
        answers += _batch_answers(predictor, files[start : start + BATCH], request.threshold)
    steps = [len(answer.confidence) for answer in answers if isinstance(answer, Prediction)]
    timesteps = max(steps, default=1)
    result = Predictions(
        predictor.source, timesteps, request.threshold, tuple(answers), request.output
    )
    if request.output is not None:
        rows = [_row(answer) for answer in answers]
        write_csv(request.output, rows, prediction_schema(timesteps))
    return result


def run_predictor(request: PredictRequest) -> Predictor:
    """Return the network of a finished run."""
    opened = open_finished(
        select_run(request.run, request.runs_dir), request.changes, request.progress
    )
    model, spec, runtime = opened.loaded.model, opened.context.dataset.spec, opened.context.runtime
    steps = opened.config.model.timesteps if model.spiking else 1

    def answer(images_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.inference_mode(), counting_of(model, steps) as counter:
            logits_TNK = logits_of(model, runtime.images(images_NCHW), steps).double().cpu()
        return logits_TNK, operations(counter.counts())

    classes = opened.loaded.classes or spec.classes
    source = str(opened.run.folder)
    known = (spec.image_shape, spec.shorter, spec.mean, spec.std)
    return Predictor(source, *known, classes, answer)


def operations(counts: Counts) -> Tensor:
    """Synaptic operations and multiply-accumulates of each image over all steps, [2, N]."""
    sops_N = np.sum([layer.value_TI.sum(axis=0) for layer in counts.layers], axis=0)
    macs = sum(int(layer.step_macs.sum()) for layer in counts.layers)
    return torch.stack([torch.from_numpy(sops_N), torch.full((counts.images,), macs)])


def onnx_predictor(path: Path) -> Predictor:
    """Return the network of an ONNX file of `tser export`. Raises ConfigError where it is none."""
    runtime = needs("onnxruntime", "onnx")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map
        known = {key: json.loads(facts[key]) for key in ("mean", "std", "classes", "input_shape")}
        steps, stateful = int(facts["timesteps"]), facts["stateful"] == "true"
        shorter = int(facts["shorter_side"])
        first = json.loads(facts["first_potentials"])
    except Exception as error:  # onnxruntime's own errors have no common base
        raise ConfigError(
            f"{path} is not an ONNX file of tser export: {error}. Name a run with --run, or export "
            "it with --format onnx"
        ) from error

    def answer(images_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        images = images_NCHW.numpy()
        if not stateful:
            return torch.from_numpy(session.run(["logits"], {"input": images})[0]).double(), None
        values = one_by_one(session, {"input": images}, steps, first)
        return torch.from_numpy(np.stack([step["logits"] for step in values])).double(), None

    channels, height, width = known["input_shape"]
    shape = (channels, height, width)
    normal = (known["mean"], known["std"])
    return Predictor(str(path), shape, shorter, *normal, known["classes"], answer)


def _batch_answers(
    predictor: Predictor, files: list[Path], threshold: float
) -> Iterator[Prediction | Unread]:
    """Yield the answers of some files, in their order."""
    read: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    for position, path in enumerate(files):
        try:
            read[position] = fitted_picture(path, predictor.shape, predictor.shorter)
        except DataError as error:
            errors[position] = str(error)
    said: dict[int, Prediction] = {}
    if read:
        images_NCHW = normalise(torch.stack(list(read.values())), predictor.mean, predictor.std)
        made = _predictions(predictor, images_NCHW, threshold, [files[p] for p in read])
        said = dict(zip(read, made, strict=True))
    for position, path in enumerate(files):
        yield said.get(position) or Unread(str(path), errors[position])


def _predictions(
    predictor: Predictor, images_NCHW: Tensor, threshold: float, files: list[Path]
) -> list[Prediction]:
    logits_TNK, counted = predictor.answer(images_NCHW)
    probabilities_TNK = cumulative_mean(logits_TNK).softmax(-1)
    confidence_TN, class_N = probabilities_TNK.amax(-1), probabilities_TNK[-1].argmax(-1)
    sure_TN = confidence_TN >= threshold
    sure_TN[-1] = True
    stop_N = sure_TN.int().argmax(0) + 1
    return [
        Prediction(
            image=str(path),
            name=predictor.classes[int(class_N[n])],
            confidence=tuple(confidence_TN[:, n].tolist()),
            stop_t=int(stop_N[n]),
            sop_value=None if counted is None else int(counted[0, n]),
            macs=None if counted is None else int(counted[1, n]),
        )
        for n, path in enumerate(files)
    ]


def _row(answer: Prediction | Unread) -> dict[str, Any]:
    """Return a line of predictions.csv."""
    if isinstance(answer, Unread):
        return {"image": answer.image, "error": answer.error}
    confidences = {f"confidence_{t}": value for t, value in enumerate(answer.confidence, start=1)}
    return {
        "image": answer.image,
        "class": answer.name,
        **confidences,
        "stop_t": answer.stop_t,
        "sop_value": answer.sop_value,
        "macs": answer.macs,
    }
