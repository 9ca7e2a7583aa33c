"""The frontier of an ablation: accuracy against energy, of cells, early exit, ANN and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from tser_cli.csv_words import ALL_STEPS, ANN, ANN_INT8, EARLY_EXIT, TEACHER
from tser_cli.energy import INT8_PROFILE, load_profile
from tser_cli.energy.counts import FloatArray
from tser_cli.engine.ablation.exit_runs import ExitRun, Key
from tser_cli.engine.ablation.summary import Rows, values_of_cells
from tser_cli.engine.evaluation.exit_choice import ALWAYS, NEVER, Stops, largest_so_far
from tser_cli.report.statistics import interval

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
