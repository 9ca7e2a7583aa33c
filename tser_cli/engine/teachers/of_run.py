"""The teacher that a run learned from. This is the only reader of it in environment.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import model_files
from tser_cli.engine.runs.find_runs import all_runs
from tser_cli.engine.runs.model_files import Loaded, freeze
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.context import Context
from tser_cli.engine.teachers.elsewhere import is_function, renormalised
from tser_cli.engine.teachers.fits import fitting_teacher
from tser_cli.errors import CheckpointError, ConfigError

TEACHER = "teacher"


@dataclass(frozen=True)
class RecordedTeacher:
    """What environment.json says of a run's teacher: where it lay, what it was, its SHA-256."""

    source: str
    model: str
    sha256: str


def recorded_teacher(run: Run) -> RecordedTeacher | None:
    """Return what `run` recorded of its teacher; None where it learned from none."""
    entry: Any = run.environment().get(TEACHER)
    if not isinstance(entry, dict):
        return None
    return RecordedTeacher(*(str(entry.get(name, "")) for name in ("source", "model", "sha256")))


def teacher_name(run: Run) -> str | None:
    """Return the architecture of the run's teacher, None where it had none."""
    recorded = recorded_teacher(run)
    return recorded.model if recorded else None


def read_run_teacher(run: Run, spec: DataSpec) -> Loaded | None:
    """Read the network that `run` learned from; None where it learned from none.

    Raises CheckpointError where its file is gone, does not fit, or is not the one of then.
    """
    recorded = recorded_teacher(run)
    if recorded is None:
        return None
    if is_function(recorded.model):
        raise CheckpointError(
            f"the teacher of {run.folder} is built by {recorded.model}, code that a run never "
            "imports by itself"
        )
    config = run.config()
    found = model_files.read(_file_of(run, recorded), spec, config.model.stem)
    loaded = fitting_teacher(renormalised(found, config, spec), spec)
    if loaded.sha256 != recorded.sha256:
        raise CheckpointError(
            f"{recorded.source}, the teacher of {run.folder}, has changed since that run began. "
            "Put the old file back, or begin a new run with --resume never"
        )
    return loaded


def _file_of(run: Run, recorded: RecordedTeacher) -> Path:
    """Return the teacher's file; where it is gone, that of a teacher beside with the same hash."""
    path = Path(recorded.source)
    if not path.is_file():
        # runs/student/digits/NAME: the folder of all runs may have been moved as a whole
        for runs_dir in run.folder.resolve().parents[2:3]:
            for other in all_runs(runs_dir, "teacher"):
                if recorded.sha256 and other.status().get("sha256") == recorded.sha256:
                    return other.model_file
    return path


def keep_teacher(run: Run, context: Context, found: Loaded) -> Loaded:
    """Return the teacher that `run` began with; where it begins now, record `found` as that.

    Raises CheckpointError where an earlier teacher's file is gone or has changed.
    """

    def keep() -> Loaded:
        before = recorded_teacher(run)
        if before is None or before.sha256 == found.sha256:
            record = RecordedTeacher(found.source, found.name, found.sha256)
            run.update_environment(teacher=asdict(record))
            return found
        earlier = read_run_teacher(run, context.dataset.spec)
        assert earlier is not None, "one was recorded"
        context.progress.say(f"teacher: {earlier.source} instead, which the run began with")
        return earlier

    kept = context.runtime.on_main(keep)
    freeze(kept.model)
    return kept


def teacher_to_count(run: Run, context: Context) -> Loaded | None:
    """Return the run's teacher for counting its operations; None where it had none.

    What an ANN costs does not depend on its weights. So where they can't be read any more, an
    untrained network of the same architecture serves, with a warning.
    """
    recorded = recorded_teacher(run)
    if recorded is None:
        return None
    try:
        loaded = read_run_teacher(run, context.dataset.spec)
    except CheckpointError as error:
        context.progress.warn(f"{error}; the operations of an untrained {recorded.model} serve")
        loaded = _untrained(recorded, context)
    if loaded is not None:
        context.runtime.place(freeze(loaded.model))
    return loaded


def _untrained(recorded: RecordedTeacher, context: Context) -> Loaded | None:
    try:
        return model_files.untrained(recorded.model, context.dataset.spec, context.config)
    except ConfigError as error:
        context.progress.warn(f"the teacher's energy is left out: {error}")
        return None
