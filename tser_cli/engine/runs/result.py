"""What came out of a run, as one object with one JSON form: the entry "result" of status.json."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tser_cli.engine.runs.run_folder import Run
from tser_cli.errors import RunError

RESULT = "result"


@dataclass(frozen=True)
class RunResult:
    """What a finished run measured on the test images.

    `per_timestep`: the numeric columns of per_timestep.csv, a dict a time step. `accuracy` is that
    of the time-averaged logits, a fraction of `images`. `energy_pj` and `ann_energy_pj`: mean
    energy of an image for the student and for the ANN of the same shape, in pJ; None for a teacher.
    `energy_budget_pj`: what it was trained to keep, and whether it did; None without a budget.
    `best_validation_accuracy`: the best of all epochs, None without a validation split. `seconds`:
    time spent in training. `against_ann`: the entry of that name in energy.json.
    """

    folder: Path
    kind: str
    model: str
    dataset: str
    method: str
    timesteps: int
    images: int
    accuracy: float
    teacher: str | None
    teacher_accuracy: float | None
    best_validation_accuracy: float | None
    energy_pj: float | None
    ann_energy_pj: float | None
    seconds: float
    per_timestep: tuple[dict[str, Any], ...]
    energy_budget_pj: float | None = None
    energy_budget_kept: bool | None = None
    against_ann: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        return self.folder.name

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the folder is left out, since it may be moved."""
        values = asdict(self)
        del values["folder"]
        return {**_finite(values), "per_timestep": [_finite(row) for row in self.per_timestep]}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    # JSON has no NaN and no infinity; a loss may be one
    lost = {k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
    return {key: None if key in lost else value for key, value in values.items()}


def recorded(run: Run) -> dict[str, Any]:
    """Return what the status of a finished run says of its result, by the fields of RunResult.

    Runs from before results were recorded have some of these fields beside the others in
    status.json; the rest is missing.
    """
    status = run.status()
    found = status.get(RESULT)
    return {**status, **found} if isinstance(found, dict) else status


def read_result(run: Run) -> RunResult:
    """Return the result that a finished run recorded.

    Raises RunError where it has none that can be read: the run was made before results were
    recorded, or its status.json is damaged.
    """
    found = run.status().get(RESULT)
    try:
        if isinstance(found, dict):
            return TypeAdapter(RunResult).validate_python({**found, "folder": run.folder})
    except ValidationError:
        pass  # a damaged entry is no result either
    raise RunError(f"{run.folder} has no recorded result; train it again")
