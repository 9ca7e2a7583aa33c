"""What early exit gives in an ablation: energy at equal accuracy, and the frontier.

Both come from what the finished runs kept of their answers: nothing is measured again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tser_cli.base.errors import TserError
from tser_cli.base.files import read_json
from tser_cli.base.progress import Progress
from tser_cli.energy.prices import INT8_PROFILE, Profile, load_profile
from tser_cli.engine.ablation.folder import AblationFolder, read_cell
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.ablation.summary import Found, key_of, values_of_cells
from tser_cli.engine.evaluation import early_exit
from tser_cli.engine.evaluation.early_exit import NEVER, Stops
from tser_cli.report import csv_files
from tser_cli.report.comparison import CellStatistics, Key, Values, summarise
from tser_cli.report.predictions import HELD_OUT, PREDICTIONS, read_predictions
from tser_cli.report.statistics import interval

CHOSEN_ON = "validation"
POINTS = 41  # of a curve of early exit
ExitRuns = Mapping[tuple[Key, int], "ExitRun"]  # by varied settings and seed
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ExitRun:
    """A finished run: the sidecar of its energy.csv, and what stopping gives on its images.

    `test` is None where the network can't stop between its steps, `held_out` also where the run
    held no images out.
    """

    document: Mapping[str, Any]
    test: Stops | None
    held_out: Stops | None


@dataclass(frozen=True)
class AtTarget:
    """A run that stops early, at the accuracy of its baseline less the margin.

    `target` and `threshold` are of held-out images: the target is what the baseline of the same
    seed reaches there with all its steps, less the margin; the threshold is the smallest one that
    reaches it. `accuracy`, `energy_pj` and `shares`, of the images that stop at each step, are
    measured on the test images. None where there is no baseline, or no threshold that reaches it.
    """

    cell: Cell
    accuracy_full: float
    energy_full_pj: float
    target: float | None = None
    threshold: float | None = None
    accuracy: float | None = None
    energy_pj: float | None = None
    shares: tuple[float, ...] = ()

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
        }
        if self.shares:
            row["mean_steps"] = sum(t * share for t, share in enumerate(self.shares, start=1))
        return {**row, **{f"share_exit_{t}": s for t, s in enumerate(self.shares, start=1)}}


@dataclass(frozen=True)
class ExitStatistics:
    """A cell at its target: its energy and accuracy, each with differences paired by seed.

    `missed`: runs that no threshold brings to the target; they are in no mean.
    """

    energy: CellStatistics
    accuracy: CellStatistics
    missed: int

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
        return {**self.energy.settings, **row, "missed": self.missed}


def write_exit_tables(
    request: Request, place: AblationFolder, progress: Progress
) -> list[ExitStatistics]:
    """Write frontier.csv, early_exit.csv and early_exit_summary.csv; return what the last says.

    The latter two need images held out, and more than one time step. Raises RunError.
    """
    found = [(cell, read_cell(cell, place.folder)) for cell in request.cells]
    runs = exit_runs(found, request.axes, progress)
    if not runs:
        return []
    # first, since it needs no images held out
    points, axes = frontier(found, request.axes, runs), request.axes
    csv_files.write_csv(
        place.folder / "frontier.csv", points, csv_files.by_cell(axes, csv_files.FRONTIER)
    )
    steps = max(cell.config.model.timesteps for cell in request.cells)
    reached = equal_accuracy(request, runs) if steps > 1 else []
    if not reached:
        return []
    rows = [one.row(request.accuracy_margin) for one in reached]
    schema = csv_files.ablation_exit_schema(axes, steps)
    csv_files.write_csv(place.folder / "early_exit.csv", rows, schema)
    summary = summarise_exits(
        {(key_of(one.cell, axes), one.cell.seed): one for one in reached}, axes, request.baseline
    )
    csv_files.write_csv(
        place.folder / "early_exit_summary.csv",
        [one.row() for one in summary],
        csv_files.by_cell(axes, csv_files.EXIT_STATISTICS),
    )
    return summary


def exit_runs(found: Found, axes: Sequence[str], progress: Progress) -> ExitRuns:
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
            runs[key_of(cell, axes), cell.seed] = ExitRun(document, *stops)
    return runs


def equal_accuracy(request: Request, runs: ExitRuns) -> list[AtTarget]:
    """Return the runs at the accuracy of their baselines; not those that held nothing out."""
    reached = []
    for cell in request.cells:
        settings = {**cell.varied, **request.baseline}
        # of the same seed, as all differences of an ablation
        base = runs.get((tuple(str(settings[axis]) for axis in request.axes), cell.seed))
        run = runs.get((key_of(cell, request.axes), cell.seed))
        if run is None or run.test is None or run.held_out is None:
            continue
        target = None
        if base is not None and base.held_out is not None:
            target = _at(base.held_out, NEVER)[0] - request.accuracy_margin
        whole = _at(run.test, NEVER)
        # chosen on held-out images and measured on test images: else it would flatter itself
        threshold = None if target is None else early_exit.reach_accuracy(run.held_out, target)
        if threshold is None:
            reached.append(AtTarget(cell, *whole, target))
        else:
            there, shares = _at(run.test, threshold), run.test.shares(threshold)
            reached.append(AtTarget(cell, *whole, target, threshold, *there, tuple(shares)))
    return reached


def _at(stops: Stops, threshold: float) -> tuple[float, float]:
    """Return accuracy and energy at a threshold; NEVER: of all steps together."""
    chosen = np.array([threshold])
    return float(stops.accuracy(chosen)[0]), float(stops.energy(chosen)[0])


def summarise_exits(
    reached: Mapping[tuple[Key, int], AtTarget], axes: Sequence[str], baseline: Mapping[str, Any]
) -> list[ExitStatistics]:
    """Return the statistics of each cell, of those of its runs that reach the target."""
    energies, accuracies = _by_cell(reached, "energy_pj"), _by_cell(reached, "accuracy")
    # without a baseline there was no target to miss
    missed = Counter(
        key for (key, _), one in reached.items() if one.target is not None and one.energy_pj is None
    )
    both = zip(
        summarise(energies, axes, baseline, "energy_pj"),
        summarise(accuracies, axes, baseline, "accuracy"),
        strict=True,
    )
    return [
        ExitStatistics(energy, accuracy, missed[tuple(energy.settings.values())])
        for energy, accuracy in both
    ]


def _by_cell(reached: Mapping[tuple[Key, int], AtTarget], figure: str) -> Mapping[Key, Values]:
    values: dict[Key, dict[int, float]] = {}
    for (key, seed), one in reached.items():
        of_cell = values.setdefault(key, {})
        if getattr(one, figure) is not None:
            of_cell[seed] = getattr(one, figure)
    return values


def frontier(found: Found, axes: Sequence[str], runs: ExitRuns) -> Rows:
    """Return the rows of frontier.csv.

    Each cell has its mean with all steps and, where its network can stop between them, a curve of
    early exit; all on test images, at thresholds that nobody chose. Then come the ANN of the same
    shape, whose accuracy nobody measured, and the teacher.
    """
    energies = values_of_cells(found, axes, "energy_pj")
    taught = values_of_cells(found, axes, "teacher_accuracy")
    points, others = Rows(), Rows()
    for key, accuracies in values_of_cells(found, axes, "accuracy").items():
        settings = dict(zip(axes, key, strict=True))
        # the point is from the results: a cell whose answers are damaged loses its curve alone
        members = [run for (name, _), run in runs.items() if name == key]
        if not accuracies:
            continue
        point = spread(list(energies[key].values()), list(accuracies.values()))
        points.append({**settings, "point": csv_files.ALL_STEPS, **point})
        points += [{**settings, **row} for row in early_exit_curve(members)]
        others += [{**settings, **row} for row in references(members, [*taught[key].values()])]
    for name in dict.fromkeys(row["point"] for row in others):
        alike = [row for row in others if row["point"] == name]
        bare = [{k: v for k, v in row.items() if k not in axes} for row in alike]
        # what is the same for all cells stands there once, without their settings
        points += bare[:1] if all(row == bare[0] for row in bare) else alike
    return points


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
    # a mean over some of its seeds would not be the curve of this cell
    if not stops or len(stops) < len(runs) or len(stops[0].right_TI) < 2:
        return []
    # between two of these thresholds about equally many images stop one step later
    largest = [early_exit.largest_so_far(run.confidence_TI).ravel() for run in stops]
    inner = np.quantile(np.concatenate(largest), np.linspace(0.0, 1.0, POINTS)[1:-1])
    thresholds_C = np.unique(np.concatenate([[early_exit.ALWAYS], inner, [NEVER]]))
    energy_RC = [run.energy(thresholds_C) for run in stops]
    accuracy_RC = [run.accuracy(thresholds_C) for run in stops]
    return [
        {
            "point": csv_files.EARLY_EXIT,
            "threshold": float(threshold),
            **spread([float(r[c]) for r in energy_RC], [float(r[c]) for r in accuracy_RC]),
        }
        for c, threshold in enumerate(thresholds_C)
    ]


def references(runs: Sequence[ExitRun], taught: Sequence[float]) -> Rows:
    """Return the points that do not spike: the ANN of the same shape, priced twice, the teacher."""
    if not runs:
        return []
    # of any seed: what an ANN computes depends on its shape alone
    document = runs[0].document
    totals, teacher = document["totals"], document.get("teacher") or {}
    int8_pj = float(totals["ann_macs"]) * load_profile(INT8_PROFILE).mac_pj
    rows: Rows = [
        {"point": csv_files.ANN, "energy_pj": float(totals["ann_energy_pj"])},
        {"point": csv_files.ANN_INT8, "energy_pj": int8_pj},
    ]
    if taught and teacher:
        energy = float(teacher["energy_pj"])
        rows.append({"point": csv_files.TEACHER, "energy_pj": energy, "accuracy": fmean(taught)})
    return rows
