"""`tser predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present
from tser_cli.cli.groups import MeasureOptions

EXAMPLES = (
    "tser predict photos/",
    "tser predict a.png b.png --run resnet18_T2_tser --json",
    "tser predict photos/ --model student.onnx --output answers.csv",
)


def predict(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders of them, or - for a list on standard input."),
    ],
    measured: MeasureOptions,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="An ONNX file of tser export, instead of a run."),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option("--threshold", help="The confidence at which an image would have stopped."),
    ] = 0.9,
    output: Annotated[
        Path | None, typer.Option("--output", help="A CSV file for the answers.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Classify image files with a finished student: class, confidence at each t, operations.

    Images of other sizes are resized to the shorter side and cropped to their middle; colours
    become grey, or grey becomes RGB, as the network takes it. Exit code 1 where one can't be read.
    """
    from tser_cli.cli.present_deployment import show_predictions
    from tser_cli.engine.commands.predict import PredictRequest, predict

    predictions = predict(
        PredictRequest(
            images=listed(images),
            run=measured.run,
            model=model,
            runs_dir=measured.runs_dir,
            threshold=threshold,
            output=output,
            changes=measured.changes(),
            progress=present.progress(),
        )
    )
    show_predictions(predictions, as_json)
    if predictions.unread:
        raise typer.Exit(1)


def listed(images: list[str]) -> list[str]:
    """Return the names, with - replaced by the lines of standard input."""
    names: list[str] = []
    for image in images:
        names += (
            [line for line in sys.stdin.read().splitlines() if line] if image == "-" else [image]
        )
    return names
