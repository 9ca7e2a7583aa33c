"""Energy at equal accuracy: what early exit costs where cells reach the same accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tser_cli.engine.ablation.exit_runs import ExitRun, Key, key_of
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.ablation.summary import Rows, summarise
from tser_cli.engine.evaluation.exit_choice import NEVER, Stops, reach_accuracy

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
