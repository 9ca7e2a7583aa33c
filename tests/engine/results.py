"""What a finished run of one step records as its result."""

from __future__ import annotations

from typing import Any

RESULT: dict[str, Any] = {
    **{"kind": "student", "model": "resnet20", "dataset": "digits", "method": "kd"},
    **{"timesteps": 1, "images": 11, "accuracy": 0.5, "teacher": None, "teacher_accuracy": None},
    **{"best_validation_accuracy": None, "energy_pj": 1.0, "ann_energy_pj": 2.0, "seconds": 1.0},
    "per_timestep": [{"t": 1, "accuracy_at_t": 0.5, "accuracy_cumulative": 0.5}],
}
