"""Runs as a list shows them. Nothing in a run folder is trusted, and no code of it is run.

What came out of a run, as one object with one JSON form: the entry "result" of status.json.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydantic import TypeAdapter, ValidationError

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.base.files import is_file
from tser_cli.engine.runs.folder import Run
from tser_cli.settings import recipe

FINISHED, RUNNING, KILLED, DAMAGED = "finished", "running", "killed", "damaged"
STATES = (FINISHED, RUNNING, "stopped", "failed")
LARGEST_PID = 2**31


@dataclass(frozen=True)
class RunEntry:
    """What a run folder says of itself; None where it does not say it, or says nonsense.

    `kind`: teacher or student. `state`: as in status.json; "killed" where that says running and its
    process on this machine is gone; "damaged" where something can't be read, which `trouble` tells.
    `accuracy`: a fraction of the test images. `energy_pj`: mean energy of an image. `when`: the
    newest time that the run recorded, in seconds since 1970, 0 without one. `size`: bytes of its
    files. `settings`: config.toml by dotted key, as it stands there. `environment`: what
    environment.json holds.
    """

    name: str
    folder: Path
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
    size: int
    trouble: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the settings and the environment."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("settings", "environment")}
        return {**kept, "folder": str(self.folder)}


def entry_of(run: Run) -> RunEntry:
    """Return what `run` says of itself; what can't be read is its `trouble`, and is no error."""
    troubles: list[str] = []
    status = _read(lambda: recorded(run), troubles)
    environment = _read(run.environment, troubles)
    settings = _read(lambda: stated_settings(run.folder), troubles)
    spiking = run.folder.parent.parent.name != "teacher"
    return RunEntry(
        name=run.name,
        folder=run.folder,
        kind="student" if spiking else "teacher",
        **_networks(spiking, status, environment, settings),
        seed=_whole(settings.get("training.seed")),
        state=DAMAGED if troubles else _state(status),
        accuracy=_number(status.get("accuracy"), 1.0),
        teacher_accuracy=_number(status.get("teacher_accuracy"), 1.0),
        energy_pj=_number(status.get("energy_pj"), math.inf),
        when=0.0 if troubles else max(map(run.time_of, ("started", "updated", "finished"))),
        size=size_of(run.folder),
        trouble="; ".join(troubles),
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


def _networks(
    spiking: bool, status: dict[str, Any], environment: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return data set, networks, time steps and method: of the result, else of what was begun."""
    own = _text(status.get("model")) or _text(
        settings.get("model.student" if spiking else "model.teacher")
    )
    found = {"dataset": _text(status.get("dataset")) or _text(settings.get("data.name")) or "?"}
    if not spiking:
        return {**found, "teacher": own, **dict.fromkeys(("student", "timesteps", "method"))}
    record = environment.get("teacher")
    taught = record.get("model") if isinstance(record, dict) else None
    return {
        **found,
        "teacher": _text(status.get("teacher")) or _text(taught),
        "student": own,
        "timesteps": _whole(settings.get("model.timesteps")),
        "method": _text(status.get("method")) or _text(settings.get("method.name")),
    }


def _state(status: dict[str, Any]) -> str:
    state = status.get("state")
    if state == RUNNING and not may_be_alive(status):
        return KILLED
    return state if state in STATES else DAMAGED


def may_be_alive(status: Mapping[str, Any]) -> bool:
    """Return whether the process of status.json may still run; on another machine it may."""
    pid = status.get("pid")
    if is_elsewhere(status) or not isinstance(pid, int):
        return True
    return bool(0 < pid < LARGEST_PID and psutil.pid_exists(pid))


def is_elsewhere(status: Mapping[str, Any]) -> bool:
    """Return whether status.json was last written by a process on another machine."""
    return bool(status.get("host", socket.gethostname()) != socket.gethostname())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any, most: float) -> float | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= most
    return float(value) if right else None


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder; links are not followed."""
    total, waiting = 0, [str(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


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
