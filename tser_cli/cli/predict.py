"""`tser predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import options as opt
from tser_cli.cli import present


def predict(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders of them, or - for a list on standard input."),
    ],
    run: opt.RunFolder = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="An ONNX file of tser export, instead of a run."),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option("--threshold", help="The confidence at which an image would have stopped."),
    ] = 0.9,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list on standard output.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="A CSV file for the answers.")
    ] = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """Classify image files with a finished student: class, confidence at each t, operations.

    Images of other sizes are resized to the shorter side and cropped to their middle; colours
    become grey, or grey becomes RGB, as the network takes it. Exit code 1 where one can't be read.
    """
    from tser_cli.cli.present_deployment import show_predictions
    from tser_cli.engine.commands.predict import PredictRequest, predict

    changes = {"data.dir": data_dir, "training.device": device}
    predictions = predict(
        PredictRequest(
            images=listed(images),
            run=run,
            model=model,
            runs_dir=runs_dir,
            threshold=threshold,
            output=output,
            changes=changes,
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
