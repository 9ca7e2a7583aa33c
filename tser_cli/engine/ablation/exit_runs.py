"""What early exit would do in the finished runs of an ablation, from their kept answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tser_cli.energy import Profile
from tser_cli.engine.ablation.cell_folder import find_cell
from tser_cli.engine.ablation.folder import AblationFolder
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.evaluation.exit_choice import Stops, stops_of
from tser_cli.engine.evaluation.kept_answers import keep_answers
from tser_cli.engine.evaluation.per_timestep import evaluate_split
from tser_cli.engine.runs.finished_run import open_finished
from tser_cli.engine.runs.run_folder import Run
from tser_cli.errors import RunError, TserError
from tser_cli.files import read_json
from tser_cli.report.predictions import HELD_OUT, PREDICTIONS, read_predictions
from tser_cli.report.progress import Progress

SIDECAR = "energy.json"
Key = tuple[str, ...]


@dataclass(frozen=True)
class ExitRun:
    """A finished run: the sidecar of its energy.csv, and what stopping gives on its images.

    `test` is None where the network can't stop between its steps, `held_out` also where the run
    held no images out.
    """

    document: Mapping[str, Any]
    test: Stops | None
    held_out: Stops | None


def exit_runs(request: Request, place: AblationFolder, progress: Progress) -> dict[Key, ExitRun]:
    """Return the finished runs by their varied settings and seed, see `key_of`.

    A run of an older version, which kept less, is measured again once. One that can't be read is
    named in a warning and left out.
    """
    found: dict[Key, ExitRun] = {}
    for cell in request.cells:
        run = find_cell(cell, place.folder)
        try:
            if run is not None:
                complete(cell, run, progress)
                found[key_of(cell, request.axes)] = read_run(run)
        except TserError as error:
            progress.warn(f"{cell.title} is left out of early exit: {error}")
    return found


def key_of(cell: Cell, axes: list[str]) -> Key:
    """Return the varied settings of a cell as texts, and its seed as the last one."""
    return (*(str(cell.varied[axis]) for axis in axes), str(cell.seed))


def complete(cell: Cell, run: Run, progress: Progress) -> None:
    """Measure a run again where it lacks what early exit needs. Raises TserError."""
    answered = read_predictions(run.folder / PREDICTIONS)
    held_out = not cell.config.data.validation_fraction or (run.folder / HELD_OUT).is_file()
    if answered is not None and answered.steps is not None and held_out:
        return
    opened = open_finished(run, {}, progress)
    model, context = opened.loaded.model, opened.context
    if not model.steps_alone:
        return
    progress.say(f"{cell.title} is measured again, to see what early exit does")
    steps = opened.config.model.timesteps
    keep_answers(run, model, context, evaluate_split(model, context, "test", steps, count=True))


def read_run(run: Run) -> ExitRun:
    """Return what a run kept. Raises TserError where its sidecar or predictions are damaged."""
    path = run.folder / SIDECAR
    try:
        document = read_json(path)
        profile = Profile.model_validate(document["profile"])
        float(document["totals"]["ann_macs"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} can't be read ({error}); distil the run again") from error
    return ExitRun(document, *(_stops(run, name, profile) for name in (PREDICTIONS, HELD_OUT)))


def _stops(run: Run, name: str, profile: Profile) -> Stops | None:
    answered = read_predictions(run.folder / name)
    return None if answered is None or answered.steps is None else stops_of(answered, profile)
