"""List the runs there are, and remove some."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tser_cli.base.errors import ConfigError, RunError, unknown
from tser_cli.base.files import write_error
from tser_cli.engine.runs.find import find_run, run_folders
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.record import RUNNING, RunEntry, entry_of, is_elsewhere
from tser_cli.settings.config import full_key
from tser_cli.settings.recipe import parse_value
from tser_cli.settings.wing_options import RunsRequest

# What can be filtered and sorted by, beside settings.
COLUMNS: Mapping[str, Callable[[RunEntry], Any]] = {
    "run": lambda entry: entry.name,
    "kind": lambda entry: entry.kind,
    "dataset": lambda entry: entry.dataset,
    "teacher": lambda entry: entry.teacher,
    "student": lambda entry: entry.student,
    "T": lambda entry: entry.timesteps,
    "method": lambda entry: entry.method,
    "seed": lambda entry: entry.seed,
    "state": lambda entry: entry.state,
    "accuracy": lambda entry: entry.accuracy,
    "energy": lambda entry: entry.energy_pj,
    "age": lambda entry: -entry.when,
    "size": lambda entry: entry.size,
}
NO_FILTER = ("accuracy", "energy", "age", "size")  # to be sorted by, too fine to be equal
Filter = Callable[[RunEntry], bool]


def list_runs(request: RunsRequest) -> list[RunEntry]:
    """Return the runs that pass all filters, sorted; one that lacks the column comes last.

    A run that can't be read is listed as damaged. Raises ConfigError.
    """
    filters = [parse_filter(text) for text in request.filters]
    if request.sort not in COLUMNS:
        raise ConfigError(f"--sort: {unknown('column', request.sort, COLUMNS)}")
    column = COLUMNS[request.sort]
    entries = [entry_of(run) for run in run_folders(request.runs_dir)]
    passing = [entry for entry in entries if all(passes(entry) for passes in filters)]
    known = [entry for entry in passing if column(entry) is not None]
    known.sort(key=column, reverse=request.reverse)
    return known + [entry for entry in passing if column(entry) is None]


def parse_filter(text: str) -> Filter:
    """Return the test that KEY=VALUE is: of a column, or of a setting by dotted or short name.

    VALUE may be alternatives, a,b, with * and ? for any characters. Raises ConfigError.
    """
    key, equals, wanted = text.partition("=")
    if not equals or not key:
        raise ConfigError(f'"{text}" is no filter; write KEY=VALUE, as method=tser, or T=1,2')
    value_of = _value_of(key)
    alternatives = wanted.split(",")
    return lambda entry: any(_alike(value_of(entry), one) for one in alternatives)


def _value_of(key: str) -> Callable[[RunEntry], Any]:
    if key in NO_FILTER:
        raise ConfigError(f'"{key}" can be sorted by (--sort {key}), but is no filter')
    if key in COLUMNS:
        return COLUMNS[key]
    dotted = full_key(key)
    return lambda entry: entry.settings.get(dotted)


def _alike(value: Any, wanted: str) -> bool:
    if value is None:
        return False
    return fnmatchcase(str(value), wanted) or value == parse_value(wanted)


@dataclass(frozen=True)
class Removable:
    """A run that may be removed, and how many students here learned from it."""

    entry: RunEntry
    students: int


def find_removable(names: Iterable[Path], runs_dir: Path) -> list[Removable]:
    """Return the runs that are meant, each once.

    Raises RunError for one that is running, is a link, or does not lie under `runs_dir`.
    """
    found = {_place(run): run for run in (find_run(name, runs_dir) for name in names)}
    entries = {_place(run): entry_of(run) for run in run_folders(runs_dir)}
    for folder, run in found.items():
        _check_removable(run, folder in entries, runs_dir)
    taught_by = [_teacher_folder(entry) for entry in entries.values()]
    return [Removable(entries[folder], taught_by.count(folder)) for folder in found]


def _place(run: Run) -> Path:
    # where the folder itself lies: a link among the runs does not make its target one of them
    return run.folder.parent.resolve() / run.folder.name


def _check_removable(run: Run, is_here: bool, runs_dir: Path) -> None:
    if run.folder.is_symlink():
        raise RunError(f"{run.folder} is a link to a folder elsewhere; remove the link by itself")
    if not is_here:
        raise RunError(
            f"{run.folder} is no run folder under {runs_dir}, and no other is removed; --runs-dir "
            "names the place"
        )
    with _holding(run):
        pass


def _teacher_folder(entry: RunEntry) -> Path | None:
    record = entry.environment.get("teacher")
    source = record.get("source") if isinstance(record, dict) else None
    return Path(source).parent if isinstance(source, str) else None


@contextmanager
def _holding(run: Run) -> Iterator[None]:
    """Hold the lock of a run that nobody works on. Raises RunError where somebody may."""
    with run.lock():
        # A lock tells of processes on this machine; of those on others the status must be believed.
        status = _status_if_sound(run)
        if status.get("state") == RUNNING and is_elsewhere(status):
            raise RunError(
                f"{run.folder} is running on {status.get('host')}: stop it there. If it is "
                "certainly dead, delete the folder by hand"
            )
        yield


def _status_if_sound(run: Run) -> Mapping[str, Any]:
    try:
        return run.status()
    except RunError:
        return {}


def remove(run: Removable) -> None:
    """Delete a run folder with all that is in it; links in it are deleted, not followed.

    Raises RunError where the run has been taken up meanwhile, or can't be deleted.
    """
    folder = run.entry.folder
    with _holding(Run(folder)):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise write_error(folder, error) from error
