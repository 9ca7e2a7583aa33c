"""The tables of an ablation: its runs, its cells with their paired differences, early exit.

What early exit gives, energy at equal accuracy and the frontier, comes from what the finished runs
kept of their answers: nothing is measured again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser_cli.base.errors import TserError
from tser_cli.base.files import read_json
from tser_cli.base.progress import Progress
from tser_cli.energy.prices import INT8_PROFILE, Profile, load_profile
from tser_cli.engine.ablation.folder import AblationFolder, CellRun, cell_name, read_cell
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.evaluation import early_exit
from tser_cli.engine.runs.record import RunResult
from tser_cli.report import csv_files
from tser_cli.report.comparison import (
    CellStatistics,
    Key,
    Values,
    summarise,
    with_holm,
    without_verdict,
)
from tser_cli.report.csv_files import by_cell, write_csv
from tser_cli.report.predictions import HELD_OUT, PREDICTIONS, read_predictions
from tser_cli.report.statistics import interval

Found = Sequence[tuple[Cell, CellRun]]


def write_tables(request: Request, folder: Path) -> list[CellStatistics]:
    """Write ablation.csv and summary.csv of the runs there are; return what the latter says.

    Raises RunError.
    """
    steps = max(cell.config.model.timesteps for cell in request.cells)
    found = [(cell, read_cell(cell, folder)) for cell in request.cells]
    rows = [_row(cell, run) for cell, run in found]
    write_csv(folder / "ablation.csv", rows, csv_files.ablation_schema(request.axes, steps))
    # the whole table each time: a difference changes with every cell that its baseline gains
    values = values_of_cells(found, attrgetter(request.measure))
    answers: dict[Key, dict[int, NDArray[np.bool_]]] = {}
    # kept answers are to test images: they say nothing of an accuracy on held-out ones
    for cell, run in found if request.measure == "accuracy" else ():
        if run.right is not None:
            answers.setdefault(cell.key, {})[cell.seed] = run.right
    summary = summarise(values, request.axes, request.baseline, request.measure, answers)
    write_csv(
        folder / "summary.csv",
        [cell.row() for cell in summary],
        by_cell(request.axes, csv_files.STATISTICS),
    )
    return summary


def write_step_table(request: Request, folder: Path) -> bool:
    """Write steps.csv: the statistics of summary.csv, for each step and measure of a step.

    Accuracies have intervals over seeds and images too. Holm's procedure is over all comparisons of
    one measure, at all its steps. Nothing is written, and False returned, of a search on held-out
    images, and where no network has a second step. Raises RunError.
    """
    steps = range(1, 1 + max(cell.config.model.timesteps for cell in request.cells))
    if request.measure != "accuracy" or len(steps) == 1:
        return False
    found = [(cell, read_cell(cell, folder)) for cell in request.cells]
    right = _right_at_steps(found)
    rows: list[dict[str, Any]] = []
    for name, column in csv_files.STEP_MEASURES.items():
        of_all: list[CellStatistics] = []
        for t in steps:
            values = values_of_cells(found, partial(_at_step, column, t))
            answers = right.get(f"{name}_{t}")
            asked = (request.axes, request.baseline, f"{name}_{t}", answers)
            of_all += summarise(values, *asked)
        rows += [cell.row() for cell in with_holm(of_all)]
    write_csv(folder / "steps.csv", rows, by_cell(request.axes, csv_files.STATISTICS))
    return True


def _at_step(column: str, t: int, result: RunResult) -> float | None:
    # of another T, or from before there was such a column: no value
    return result.per_timestep[t - 1].get(column) if t <= len(result.per_timestep) else None


def _right_at_steps(found: Found) -> dict[str, dict[Key, dict[int, NDArray[np.bool_]]]]:
    """Return whether each answer is right, by measure and step, cell and seed."""
    right: dict[str, dict[Key, dict[int, NDArray[np.bool_]]]] = {}
    for cell, run in found:
        answers = run.predictions()
        if answers is None:
            continue
        of_kind = {"accuracy_at": answers.at_t_IT, "accuracy_cumulative": answers.cumulative_IT}
        for name, predicted_IT in of_kind.items():
            for t, right_I in enumerate(answers.labels_I == predicted_IT.T, start=1):
                of_step = right.setdefault(f"{name}_{t}", {})
                of_step.setdefault(cell.key, {})[cell.seed] = right_I
    return right


def _row(cell: Cell, found: CellRun) -> dict[str, Any]:
    """Return the row of ablation.csv. `seconds` are of training, in all its parts."""
    row = {**cell.varied, "seed": cell.seed, "state": found.state}
    row |= {"folder": f"cells/{cell_name(cell)}", **cell.in_words}
    if found.record is None:
        return row
    result, environment = found.record.result, found.record.environment
    assert result is not None, "it has finished"
    git = environment.get("git") or {}
    commit = f"{git['commit']}{'+changes' if git.get('changed') else ''}" if git else ""
    row["commit"] = commit or f"version {environment.get('tser')}"  # where it was no git checkout
    row["torch"] = environment.get("packages", {}).get("torch")
    # on CPUs the order of sums, and so their last bits, depends on the threads
    row["threads"] = environment.get("threads")
    names = ("accuracy", "teacher_accuracy", "best_validation_accuracy", "teacher_train_accuracy")
    row |= {name: getattr(result, name) for name in (*names, "energy_pj", "seconds", "events")}
    for step in result.per_timestep:
        for name, column in csv_files.STEP_MEASURES.items():
            row[f"{name}_{step['t']}"] = step.get(column)
    return row


def values_of_cells(
    found: Found, figure: Callable[[RunResult], float | None]
) -> Mapping[Key, Values]:
    """Return each cell's values of a figure of its results, by seed; cells in their order."""
    values: dict[Key, dict[int, float]] = {cell.key: {} for cell, _ in found}
    for cell, run in found:
        result = run.record.result if run.record else None
        value = None if result is None else figure(result)
        if value is not None:
            values[cell.key][cell.seed] = value
    return values


CHOSEN_ON = "validation"
POINTS = 41  # of a curve of early exit
ExitRuns = Mapping[tuple[Key, int], "ExitRun"]  # by varied settings and seed


@dataclass(frozen=True)
class ExitRun:
    """A finished run: the sidecar of its energy.csv, and what stopping gives on its images.

    `test` is None where the network can't stop between its steps, `held_out` also where the run
    held no images out.
    """

    document: Mapping[str, Any]
    test: early_exit.Stops | None
    held_out: early_exit.Stops | None


@dataclass(frozen=True)
class AtTarget:
    """A run that stops early, at the accuracy of its baseline less the margin.

    `target` and `threshold` are of held-out images: the target is what the baseline of the same
    seed reaches there with all its steps, less the margin; the threshold is the smallest one that
    reaches it. `accuracy`, `energy_pj`, `shares`, of the images that stop at each step, and
    `latency_ms`, of events that were seen, are measured on the test images. None where there is no
    baseline, or no threshold that reaches it.
    """

    cell: Cell
    accuracy_full: float
    energy_full_pj: float
    target: float | None = None
    threshold: float | None = None
    accuracy: float | None = None
    energy_pj: float | None = None
    shares: tuple[float, ...] = ()
    latency_ms: float | None = None
    latency_full_ms: float | None = None

    def row(self, margin: float) -> dict[str, Any]:
        """Return the row of early_exit.csv."""
        row = {
            **self.cell.varied,
            "seed": self.cell.seed,
            "chosen_on": CHOSEN_ON,
            "accuracy_margin": margin,
            "target_accuracy": self.target,
            "accuracy_full": self.accuracy_full,
            "energy_full_pj": self.energy_full_pj,
            "threshold": self.threshold,
            "accuracy": self.accuracy,
            "energy_pj": self.energy_pj,
            "latency_ms": self.latency_ms,
            "latency_full_ms": self.latency_full_ms,
        }
        if self.shares:
            row["mean_steps"] = sum(t * share for t, share in enumerate(self.shares, start=1))
        return {**row, **{f"share_exit_{t}": s for t, s in enumerate(self.shares, start=1)}}


@dataclass(frozen=True)
class ExitStatistics:
    """A cell at its target: its energy and accuracy, each with differences paired by seed.

    `missed`: runs that no threshold brings to the target; they are in no mean, so that there is no
    verdict on the others. `latency_ms`: the mean of the others, None where frames are not by time.
    """

    energy: CellStatistics
    accuracy: CellStatistics
    missed: int
    latency_ms: float | None = None

    def row(self) -> dict[str, Any]:
        """Return the row of early_exit_summary.csv."""
        energy, accuracy = self.energy.row(), self.accuracy.row()
        renamed = {
            "accuracy_mean": "energy_mean_pj",
            "accuracy_std": "energy_std_pj",
            "difference_mean": "energy_difference_pj",
            "difference_low": "energy_difference_low_pj",
            "difference_high": "energy_difference_high_pj",
        }
        of_energy = {renamed.get(name, name): value for name, value in energy.items()}
        names = [name for name in csv_files.EXIT_STATISTICS if name != "missed"]
        row = {name: of_energy.get(name, accuracy.get(name)) for name in names}
        row |= {"missed": self.missed, "latency_mean_ms": self.latency_ms}
        return {**self.energy.settings, **row}


def write_exit_tables(
    request: Request, place: AblationFolder, progress: Progress
) -> list[ExitStatistics]:
    """Write frontier.csv, early_exit.csv and early_exit_summary.csv; return what the last says.

    The latter two need images held out, and more than one time step. Raises RunError.
    """
    found = [(cell, read_cell(cell, place.folder)) for cell in request.cells]
    runs = exit_runs(found, progress)
    if not runs:
        return []
    # first, since it needs no images held out
    axes, points = request.axes, [point.row(request.axes) for point in frontier(found, runs)]
    write_csv(place.folder / "frontier.csv", points, by_cell(axes, csv_files.FRONTIER))
    steps = max(cell.config.model.timesteps for cell in request.cells)
    reached = equal_accuracy(request, runs) if steps > 1 else []
    if not reached:
        return []
    rows = [one.row(request.accuracy_margin) for one in reached]
    schema = csv_files.ablation_exit_schema(axes, steps)
    write_csv(place.folder / "early_exit.csv", rows, schema)
    summary = summarise_exits(reached, axes, request.baseline)
    rows, schema = (
        [one.row() for one in summary],
        by_cell(axes, csv_files.EXIT_STATISTICS),
    )
    write_csv(place.folder / "early_exit_summary.csv", rows, schema)
    return summary


def exit_runs(found: Found, progress: Progress) -> ExitRuns:
    """Return the finished runs. One that can't be read is named in a warning and left out."""
    runs: dict[tuple[Key, int], ExitRun] = {}
    for cell, run in found:
        if run.record is None:
            continue
        folder = run.record.run.folder
        try:
            document = read_json(folder / "energy.json")
            # the prices that the run was counted by: their file may have changed, or be gone
            profile = Profile.model_validate(document["profile"])
            # read here, so that a damaged file costs this run alone and not the tables
            float(document["totals"]["ann_macs"])
            answered = [read_predictions(folder / name) for name in (PREDICTIONS, HELD_OUT)]
        except TserError as error:
            progress.warn(f"{cell.title} is left out of early exit: {error}")
        except (KeyError, TypeError, ValueError) as error:
            progress.warn(
                f"{cell.title} is left out of early exit: {folder / 'energy.json'} can't be read "
                f"({error}); distil the run again"
            )
        else:
            stops = (early_exit.stops_of(a, profile) if a and a.steps else None for a in answered)
            runs[cell.key, cell.seed] = ExitRun(document, *stops)
    return runs


def equal_accuracy(request: Request, runs: ExitRuns) -> list[AtTarget]:
    """Return the runs at the accuracy of their baselines; not those that held nothing out."""
    reached = []
    for cell in request.cells:
        settings = {**cell.varied, **request.baseline}
        # of the same seed, as all differences of an ablation
        base = runs.get((tuple(str(settings[axis]) for axis in request.axes), cell.seed))
        run = runs.get((cell.key, cell.seed))
        if run is None or run.test is None or run.held_out is None:
            continue
        target = None
        if base is not None and base.held_out is not None:
            target = _at(base.held_out, early_exit.NEVER)[0] - request.accuracy_margin
        whole = _at(run.test, early_exit.NEVER)
        # chosen on held-out images and measured on test images: else it would flatter itself
        threshold = None if target is None else early_exit.reach_accuracy(run.held_out, target)
        if threshold is None:
            reached.append(AtTarget(cell, *whole, target))
        else:
            there, shares = _at(run.test, threshold), run.test.shares(threshold)
            seen = (run.test.latency(at) for at in (threshold, early_exit.NEVER))
            reached.append(AtTarget(cell, *whole, target, threshold, *there, tuple(shares), *seen))
    return reached


def _at(stops: early_exit.Stops, threshold: float) -> tuple[float, float]:
    """Return accuracy and energy at a threshold; NEVER: of all steps together."""
    chosen = np.array([threshold])
    return float(stops.accuracy(chosen)[0]), float(stops.energy(chosen)[0])


def summarise_exits(
    reached: Sequence[AtTarget], axes: Sequence[str], baseline: Mapping[str, Any]
) -> list[ExitStatistics]:
    """Return the statistics of each cell, of those of its runs that reach the target."""
    energies: dict[Key, dict[int, float]] = {one.cell.key: {} for one in reached}
    accuracies: dict[Key, dict[int, float]] = {key: {} for key in energies}
    missed, seen = Counter[Key](), dict[Key, list[float]]()
    for one in reached:
        if one.energy_pj is not None and one.accuracy is not None:
            energies[one.cell.key][one.cell.seed] = one.energy_pj
            accuracies[one.cell.key][one.cell.seed] = one.accuracy
            if one.latency_ms is not None:
                seen.setdefault(one.cell.key, []).append(one.latency_ms)
        elif one.target is not None:  # without a baseline there was no target to miss
            missed[one.cell.key] += 1
    of_energy = summarise(energies, axes, baseline, "energy_pj")
    of_accuracy = summarise(accuracies, axes, baseline, "accuracy")
    found = []
    for energy, accuracy in zip(of_energy, of_accuracy, strict=True):
        key = tuple(energy.settings.values())
        if missed[key]:
            # the runs that are left are those that found it easy
            energy, accuracy = without_verdict(energy), without_verdict(accuracy)
        latency_ms = fmean(seen[key]) if key in seen else None
        found.append(ExitStatistics(energy, accuracy, missed[key], latency_ms))
    return found


@dataclass(frozen=True)
class Point:
    """A row of frontier.csv: what an image costs, and how many are right, in the mean of `n` runs.

    `low` and `high` are ends of 95 % intervals; None for fewer than two runs. `key`: the cell's
    varied settings, () where the point belongs to all cells.
    """

    key: Key
    point: str
    energy_pj: float | None
    accuracy: float | None = None
    n: int | None = None
    threshold: float | None = None
    energy_low_pj: float | None = None
    energy_high_pj: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None

    def row(self, axes: Sequence[str]) -> dict[str, Any]:
        """Return the row, the varied settings first."""
        row = {**dict(zip(axes, self.key, strict=False)), **vars(self)}
        del row["key"]
        return row


def frontier(found: Found, runs: ExitRuns) -> list[Point]:
    """Return the points of frontier.csv.

    Each cell has its mean with all steps and, where its network can stop between them, a curve of
    early exit; all on test images, at thresholds that nobody chose. Then come the ANN of the same
    shape, whose accuracy nobody measured, and the teacher.
    """
    energies = values_of_cells(found, attrgetter("energy_pj"))
    taught = values_of_cells(found, attrgetter("teacher_accuracy"))
    points, others = list[Point](), list[Point]()
    for key, accuracies in values_of_cells(found, attrgetter("accuracy")).items():
        # the point is from the results: a cell whose answers are damaged loses its curve alone
        members = [run for (name, _), run in runs.items() if name == key]
        if not accuracies:
            continue
        of_cell = [*energies[key].values()], [*accuracies.values()]
        points.append(mean_point(key, csv_files.ALL_STEPS, *of_cell))
        points += early_exit_curve(key, members)
        others += references(key, members, [*taught[key].values()])
    for name in dict.fromkeys(point.point for point in others):
        alike = [point for point in others if point.point == name]
        bare = [replace(point, key=()) for point in alike]
        # what is the same for all cells stands there once, without their settings
        points += bare[:1] if all(point == bare[0] for point in bare) else alike
    return points


def mean_point(
    key: Key,
    name: str,
    energies: Sequence[float],
    accuracies: Sequence[float],
    threshold: float | None = None,
) -> Point:
    """Return the means over seeds, and their intervals."""
    energy = fmean(energies) if energies else None
    intervals = [interval(values) or (None, None) for values in (energies, accuracies)]
    ends = itertools.chain(*intervals)
    return Point(key, name, energy, fmean(accuracies), len(accuracies), threshold, *ends)


def early_exit_curve(key: Key, runs: Sequence[ExitRun]) -> list[Point]:
    """Return a point a threshold, the mean of the runs; none where a run can't stop early."""
    stops = [run.test for run in runs if run.test is not None]
    # a mean over some of its seeds would not be the curve of this cell
    if not stops or len(stops) < len(runs) or len(stops[0].right_TI) < 2:
        return []
    # between two of these thresholds about equally many images stop one step later
    largest = [early_exit.largest_so_far(run.confidence_TI).ravel() for run in stops]
    inner = np.quantile(np.concatenate(largest), np.linspace(0.0, 1.0, POINTS)[1:-1])
    thresholds_C = np.unique(np.concatenate([[early_exit.ALWAYS], inner, [early_exit.NEVER]]))
    energy_CR = np.stack([run.energy(thresholds_C) for run in stops], axis=1).tolist()
    accuracy_CR = np.stack([run.accuracy(thresholds_C) for run in stops], axis=1).tolist()
    return [
        mean_point(key, csv_files.EARLY_EXIT, energy_CR[c], accuracy_CR[c], threshold)
        for c, threshold in enumerate(thresholds_C.tolist())
    ]


def references(key: Key, runs: Sequence[ExitRun], taught: Sequence[float]) -> list[Point]:
    """Return the points that do not spike: the ANN of the same shape, priced twice, the teacher."""
    if not runs:
        return []
    # of any seed: what an ANN computes depends on its shape alone
    document = runs[0].document
    totals, teacher = document["totals"], document.get("teacher") or {}
    int8_pj = float(totals["ann_macs"]) * load_profile(INT8_PROFILE).mac_pj
    points = [
        Point(key, csv_files.ANN, float(totals["ann_energy_pj"])),
        Point(key, csv_files.ANN_INT8, int8_pj),
    ]
    if taught and teacher:
        energy_pj = float(teacher["energy_pj"])
        points.append(Point(key, csv_files.TEACHER, energy_pj, fmean(taught)))
    return points
