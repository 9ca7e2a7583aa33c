"""Energy at equal accuracy: what early exit costs where cells reach the same accuracy.

What early exit would do in the finished runs of an ablation, from their kept answers.

Write an ablation's tables of early exit and its frontier.

The frontier of an ablation: accuracy against energy, of cells, early exit, ANN and teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tser_cli.base.errors import RunError, TserError
from tser_cli.base.files import read_json
from tser_cli.base.progress import Progress
from tser_cli.energy.counts import FloatArray
from tser_cli.energy.prices import INT8_PROFILE, Profile, load_profile
from tser_cli.engine.ablation.folder import AblationFolder, find_cell
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.ablation.summary import Rows, summarise, values_of_cells
from tser_cli.engine.evaluation.early_exit import (
    ALWAYS,
    NEVER,
    Stops,
    largest_so_far,
    reach_accuracy,
    stops_of,
)
from tser_cli.engine.evaluation.evaluate import evaluate_split, keep_answers
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import open_finished
from tser_cli.report.csv_files import (
    ALL_STEPS,
    ANN,
    ANN_INT8,
    EARLY_EXIT,
    TEACHER,
    ablation_exit_schema,
    exit_summary_schema,
    frontier_schema,
    read_ablation,
    write_csv,
)
from tser_cli.report.predictions import HELD_OUT, PREDICTIONS, read_predictions
from tser_cli.report.statistics import interval

CHOSEN_ON = "validation"
# Columns of the summary, by those of the statistics of one measure.
OF_ENERGY = {
    "n": "n",
    "accuracy_mean": "energy_mean_pj",
    "accuracy_std": "energy_std_pj",
    "baseline": "baseline",
    "pairs": "pairs",
    "difference_mean": "energy_difference_pj",
    "difference_low": "energy_difference_low_pj",
    "difference_high": "energy_difference_high_pj",
    "resolved": "resolved",
    "p_value": "p_value",
    "p_holm": "p_holm",
    "resolved_holm": "resolved_holm",
}
OF_ACCURACY = {
    name: name
    for name in (
        *("accuracy_mean", "accuracy_std"),
        *("difference_mean", "difference_low", "difference_high"),
    )
}


def equal_accuracy(request: Request, runs: Mapping[Key, ExitRun]) -> Rows:
    """Return a row a run: the energy at which it reaches its baseline's accuracy less the margin.

    Target and threshold are of held-out images: the target is what the baseline of the same seed
    reaches there with all its steps, less `request.accuracy_margin`; the threshold is the smallest
    one that reaches it. Accuracy and energy are then measured on the test images. They are empty
    where no threshold reaches the target, or where there is no baseline. A run that held nothing
    out has no row.
    """
    rows: Rows = []
    for cell in request.cells:
        run, base = runs.get(key_of(cell, request.axes)), runs.get(_baseline_key(cell, request))
        if run is None or run.test is None or run.held_out is None:
            continue
        target = None
        if base is not None and base.held_out is not None:
            target = full_accuracy(base.held_out) - request.accuracy_margin
        rows.append(
            {
                **cell.varied,
                "seed": cell.seed,
                "chosen_on": CHOSEN_ON,
                "accuracy_margin": request.accuracy_margin,
                "target_accuracy": target,
                "accuracy_full": full_accuracy(run.test),
                "energy_full_pj": float(run.test.energy(np.array([NEVER]))[0]),
                **at_target(run.held_out, run.test, target),
            }
        )
    return rows


def _baseline_key(cell: Cell, request: Request) -> Key:
    settings = {**cell.varied, **request.baseline}
    return (*(str(settings[axis]) for axis in request.axes), str(cell.seed))


def full_accuracy(stops: Stops) -> float:
    """Return the accuracy of all steps together."""
    return float(stops.accuracy(np.array([NEVER]))[0])


def at_target(held_out: Stops, test: Stops, target: float | None) -> dict[str, Any]:
    """Return the threshold, and what it gives on the test images; nothing where there is none."""
    threshold = None if target is None else reach_accuracy(held_out, target)
    if threshold is None:
        return {"threshold": None, "accuracy": None, "energy_pj": None}
    chosen = np.array([threshold])
    shares = test.shares(threshold)
    return {
        "threshold": threshold,
        "accuracy": float(test.accuracy(chosen)[0]),
        "energy_pj": float(test.energy(chosen)[0]),
        "mean_steps": sum(t * share for t, share in enumerate(shares, start=1)),
        **{f"share_exit_{t}": share for t, share in enumerate(shares, start=1)},
    }


def summarise_exits(
    rows: Sequence[Mapping[str, Any]], axes: Sequence[str], baseline: Mapping[str, Any]
) -> Rows:
    """Return a row a cell: energy and accuracy at the target, and differences paired by seed.

    `missed`: runs that no threshold brings to the target; they are in no mean.
    """
    finished = [{**row, "state": "finished"} for row in rows]
    both = [summarise(finished, axes, baseline, measure) for measure in ("energy_pj", "accuracy")]
    return [
        {
            **{axis: energy[axis] for axis in axes},
            **{ours: energy[name] for name, ours in OF_ENERGY.items()},
            **{ours: accuracy[name] for name, ours in OF_ACCURACY.items()},
            "missed": sum(_misses(row, energy, axes) for row in rows),
        }
        for energy, accuracy in zip(*both, strict=True)
    ]


def _misses(row: Mapping[str, Any], cell: Mapping[str, Any], axes: Sequence[str]) -> bool:
    alike = all(str(row[axis]) == str(cell[axis]) for axis in axes)
    return alike and row["target_accuracy"] is not None and row["energy_pj"] is None


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


def write_exit_tables(request: Request, place: AblationFolder, progress: Progress) -> Rows:
    """Write frontier.csv, early_exit.csv and early_exit_summary.csv; return the rows of the last.

    The latter two need images held out, and more than one time step. Needs ablation.csv. Raises
    RunError.
    """
    runs = exit_runs(request, place, progress)
    if not runs:
        return []
    table = read_ablation(place.folder / "ablation.csv", request.axes)
    finished: Rows = table.to_dict("records")  # type: ignore[assignment]
    points = frontier(finished, request.axes, runs)
    write_csv(place.folder / "frontier.csv", points, frontier_schema(request.axes))
    steps = max(cell.config.model.timesteps for cell in request.cells)
    rows = equal_accuracy(request, runs) if steps > 1 else []
    if not rows:
        return []
    summary = summarise_exits(rows, request.axes, request.baseline)
    schema = ablation_exit_schema(request.axes, steps)
    write_csv(place.folder / "early_exit.csv", rows, schema)
    write_csv(place.folder / "early_exit_summary.csv", summary, exit_summary_schema(request.axes))
    return summary


POINTS = 41  # of a curve of early exit


def frontier(
    rows: Sequence[Mapping[str, Any]], axes: Sequence[str], runs: Mapping[Key, ExitRun]
) -> Rows:
    """Return the points of the frontier; `rows` are those of ablation.csv.

    Each cell has its mean with all steps and, where its network can stop between them, a curve of
    early exit; all on test images, at thresholds that nobody chose. Then come the ANN of the same
    shape, whose accuracy nobody measured, and the teacher.
    """
    energies = values_of_cells(rows, axes, "energy_pj")
    taught = values_of_cells(rows, axes, "teacher_accuracy")
    found, others = Rows(), Rows()
    for key, accuracies in values_of_cells(rows, axes, "accuracy").items():
        settings = dict(zip(axes, key, strict=True))
        members = [run for name, run in runs.items() if name[:-1] == key]
        if not len(accuracies):
            continue
        point = spread(energies[key].tolist(), accuracies.tolist())
        found.append({**settings, "point": ALL_STEPS, **point})
        found += [{**settings, **row} for row in early_exit_curve(members)]
        others += [{**settings, **row} for row in references(members, taught[key].tolist())]
    return [*found, *alike_once(others, axes)]


def spread(energies: Sequence[float], accuracies: Sequence[float]) -> dict[str, Any]:
    """Return means over seeds, and their 95 % intervals; no interval of fewer than two seeds."""
    row: dict[str, Any] = {"n": len(accuracies)}
    for name, unit, values in (("energy", "_pj", energies), ("accuracy", "", accuracies)):
        low, high = interval(values) or (None, None)
        row[f"{name}{unit}"] = fmean(values) if values else None
        row |= {f"{name}_low{unit}": low, f"{name}_high{unit}": high}
    return row


def early_exit_curve(runs: Sequence[ExitRun]) -> Rows:
    """Return a point a threshold, the mean of the runs; none where a run can't stop early."""
    stops = [run.test for run in runs if run.test is not None]
    if not stops or len(stops) < len(runs) or len(stops[0].right_TI) < 2:
        return []
    thresholds_C = spread_thresholds(stops)
    energy_RC = [run.energy(thresholds_C) for run in stops]
    accuracy_RC = [run.accuracy(thresholds_C) for run in stops]
    return [
        {
            "point": EARLY_EXIT,
            "threshold": float(threshold),
            **spread([float(r[c]) for r in energy_RC], [float(r[c]) for r in accuracy_RC]),
        }
        for c, threshold in enumerate(thresholds_C)
    ]


def spread_thresholds(stops: Sequence[Stops]) -> FloatArray:
    """Return thresholds between which about equally many images stop one step later."""
    confidences = np.concatenate([largest_so_far(run.confidence_TI).ravel() for run in stops])
    inner = np.quantile(confidences, np.linspace(0.0, 1.0, POINTS)[1:-1])
    return np.unique(np.concatenate([[ALWAYS], inner, [NEVER]]))


def references(runs: Sequence[ExitRun], taught: Sequence[float]) -> Rows:
    """Return the points that do not spike: the ANN of the same shape, priced twice, the teacher."""
    if not runs:
        return []
    document = runs[0].document
    totals, teacher = document["totals"], document.get("teacher") or {}
    int8_pj = float(totals["ann_macs"]) * load_profile(INT8_PROFILE).mac_pj
    rows: Rows = [
        {"point": ANN, "energy_pj": float(totals["ann_energy_pj"])},
        {"point": ANN_INT8, "energy_pj": int8_pj},
    ]
    if taught and teacher:
        energy = float(teacher["energy_pj"])
        rows.append({"point": TEACHER, "energy_pj": energy, "accuracy": fmean(taught)})
    return rows


def alike_once(rows: Rows, axes: Sequence[str]) -> Rows:
    """Return points that are the same for all cells once, without settings."""
    kept: Rows = []
    for point in dict.fromkeys(row["point"] for row in rows):
        members = [row for row in rows if row["point"] == point]
        bare = [{k: v for k, v in row.items() if k not in axes} for row in members]
        kept += bare[:1] if all(row == bare[0] for row in bare) else members
    return kept
