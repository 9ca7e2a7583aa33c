"""What a run folder says, read in one go: for lists of runs, comparisons, ablations and pages.

Nothing in a run folder is trusted, and no code of it is run.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import psutil
from pydantic import TypeAdapter, ValidationError

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.base.files import is_file
from tser_cli.engine.runs.folder import Run, time_of
from tser_cli.settings import recipe

FINISHED, RUNNING, KILLED, DAMAGED = "finished", "running", "killed", "damaged"
STATES = (FINISHED, RUNNING, "stopped", "failed")
LARGEST_PID = 2**31
RESULT = "result"  # the entry of status.json


@dataclass(frozen=True)
class RunResult:
    """What a finished run measured on the test images.

    `per_timestep`: the numeric columns of per_timestep.csv, a dict a time step. `accuracy` is that
    of the time-averaged logits, a fraction of `images`. `energy_pj` and `ann_energy_pj`: mean
    energy of an image for the student and for the ANN of the same shape, in pJ; None for a teacher.
    `energy_budget_pj`: what it was trained to keep, and whether it did; None without a budget.
    `best_validation_accuracy`: the best of all epochs, None without a validation split.
    `teacher_train_accuracy`: its teacher's, on the training images as the last epoch showed them to
    the student. `seconds`: time spent in training. `against_ann`: the entry of that name in
    energy.json. `events`: from what they were simulated; None for those of a camera, and for
    images.
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
    events: str | None = None
    teacher_train_accuracy: float | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the folder is left out, since it may be moved."""
        values = asdict(self)
        del values["folder"]
        return {**_finite(values), "per_timestep": [_finite(row) for row in self.per_timestep]}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    # JSON has no NaN and no infinity; a loss may be one
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says of itself; None where it does not say it, or says nonsense.

    `kind`: teacher or student. `state`: as in status.json; "killed" where that says running and its
    process on this machine is gone; "damaged" where something can't be read, which `trouble` tells.
    `accuracy`: a fraction of the test images. `energy_pj`: mean energy of an image. `when`: the
    newest time that the run recorded, in seconds since 1970, 0 without one. `status` and
    `environment`: what the JSON files hold. `settings`: config.toml by dotted key, as it stands.
    """

    run: Run
    kind: str
    dataset: str
    teacher: str | None
    student: str | None
    timesteps: int | None
    method: str | None
    seed: int | None
    state: str
    accuracy: float | None
    teacher_accuracy: float | None
    energy_pj: float | None
    when: float
    trouble: str
    status: Mapping[str, Any]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def is_simulated(self) -> bool:
        """Return whether it is of events that no camera recorded."""
        return bool((self.status.get("data") or {}).get("events"))

    @cached_property
    def size(self) -> int:
        """Return the bytes of all its files; links are not followed."""
        total, waiting = 0, [str(self.folder)]
        while waiting:
            with suppress(OSError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    # a link may lead out of the folder, or back into it
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        return total

    @cached_property
    def result(self) -> RunResult | None:
        """Return the result that it recorded, None where there is no sound one."""
        return _result_in(self.status, self.folder)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without what the files hold as a whole."""
        names = ("kind", "dataset", "teacher", "student", "timesteps", "method", "seed", "state")
        numbers = ("accuracy", "teacher_accuracy", "energy_pj", "when", "size", "trouble")
        found = {name: getattr(self, name) for name in (*names, *numbers)}
        return {"name": self.name, "folder": str(self.folder), **found}


def read_record(run: Run) -> RunRecord:
    """Read each file of `run` once; what can't be read is its `trouble`, and is no error."""
    troubles: list[str] = []
    status = _read(run.status, troubles)
    environment = _read(run.environment, troubles)
    settings = _read(lambda: stated_settings(run.folder), troubles)
    said = with_result(status)
    # by the place, which is there where status.json is damaged
    spiking = run.folder.parent.parent.name != "teacher"
    record = environment.get("teacher")
    taught = record.get("model") if isinstance(record, dict) else None
    model = _text(said.get("model"))
    return RunRecord(
        run=run,
        kind="student" if spiking else "teacher",
        dataset=_text(said.get("dataset")) or _text(settings.get("data.name")) or "?",
        teacher=_text(said.get("teacher")) or _text(taught)
        if spiking
        else model or _text(settings.get("model.teacher")),
        student=model or _text(settings.get("model.student")) if spiking else None,
        timesteps=_whole(settings.get("model.timesteps")) if spiking else None,
        method=_text(said.get("method")) or _text(settings.get("method.name")) if spiking else None,
        seed=_whole(settings.get("training.seed")),
        state=DAMAGED if troubles else _state(status),
        accuracy=_number(said.get("accuracy"), 1.0),
        teacher_accuracy=_number(said.get("teacher_accuracy"), 1.0),
        energy_pj=_number(said.get("energy_pj"), math.inf),
        when=0.0
        if troubles
        else max(time_of(status, event) for event in ("started", "updated", "finished")),
        trouble="; ".join(troubles),
        status=status,
        settings=settings,
        environment=environment,
    )


def _read(reader: Callable[[], dict[str, Any]], troubles: list[str]) -> dict[str, Any]:
    try:
        return reader()
    except (RunError, ConfigError) as error:
        troubles.append(str(error))
        return {}


def stated_settings(folder: Path) -> dict[str, Any]:
    """Return config.toml by dotted key, as it stands: no plug-in is asked for, no key looked up.

    Raises ConfigError, RunError.
    """
    path = folder / "config.toml"
    if not is_file(path):
        raise RunError(f"{path} is missing, or no file")
    return recipe.read(str(path)).values


def with_result(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of status.json, over them those of the result in it."""
    found = status.get(RESULT)
    return {**status, **found} if isinstance(found, dict) else dict(status)


def find_result(run: Run) -> RunResult | None:
    """Return the result that a run recorded, None where there is no sound one."""
    return _result_in(run.status(), run.folder)


def _result_in(status: Mapping[str, Any], folder: Path) -> RunResult | None:
    found = status.get(RESULT)
    if not isinstance(found, dict):
        return None
    try:
        result = _result_type().validate_python({**found, "folder": folder})
        steps = result.per_timestep
        # checked here once: whoever draws or compares it can then rely on it
        rows = [row[name] for row in steps for name in ("accuracy_at_t", "accuracy_cumulative")]
        counts = [(row.get("correct_cumulative", 0), row.get("images", 1)) for row in steps]
        tests = [row.get(name) for row in steps for name in ("chance", "p_chance", "p_teacher")]
        taught = (result.teacher_accuracy, result.teacher_train_accuracy)
        others = (*taught, result.best_validation_accuracy, *tests)
        fractions = [result.accuracy, *rows, *(value for value in others if value is not None)]
        whole = all(type(right) is type(n) is int and 0 <= right <= n and n for right, n in counts)
        in_order = [row["t"] for row in steps] == list(range(1, result.timesteps + 1))
        return (
            result
            if whole and in_order and all(0.0 <= value <= 1.0 for value in fractions)
            else None
        )
    except (ValidationError, KeyError, TypeError):
        return None  # a damaged entry is no result either


@cache
def _result_type() -> TypeAdapter[RunResult]:
    # made once: it costs more than reading the run
    return TypeAdapter(RunResult)


def _state(status: Mapping[str, Any]) -> str:
    state, pid = status.get("state"), status.get("pid")
    # of a process on another machine nobody here can know
    if state == RUNNING and isinstance(pid, int) and not is_elsewhere(status):
        return RUNNING if 0 < pid < LARGEST_PID and psutil.pid_exists(pid) else KILLED
    return state if state in STATES else DAMAGED


def is_elsewhere(status: Mapping[str, Any]) -> bool:
    """Return whether status.json was last written by a process on another machine."""
    return bool(status.get("host", socket.gethostname()) != socket.gethostname())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any, most: float) -> float | None:
    # a bool is an int to Python, and no number of ours
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= most
    return float(value) if right else None
