"""List the runs there are, and remove some."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tser_cli.base.errors import ConfigError, RunError, unknown
from tser_cli.base.files import write_error
from tser_cli.engine.runs.find import find_run, run_folders
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.record import RUNNING, RunRecord, is_elsewhere, read_record
from tser_cli.settings.names import full_key
from tser_cli.settings.recipe import parse_value
from tser_cli.settings.wing_options import RunsRequest

# What can be filtered and sorted by, beside settings.
COLUMNS: Mapping[str, Callable[[RunRecord], Any]] = {
    "run": lambda record: record.name,
    "kind": lambda record: record.kind,
    "dataset": lambda record: record.dataset,
    "teacher": lambda record: record.teacher,
    "student": lambda record: record.student,
    "T": lambda record: record.timesteps,
    "method": lambda record: record.method,
    "seed": lambda record: record.seed,
    "state": lambda record: record.state,
    "accuracy": lambda record: record.accuracy,
    "energy": lambda record: record.energy_pj,
    # a time of day taken negatively sorts as an age does: the youngest first
    "age": lambda record: -record.when,
    "size": lambda record: record.size,
}
NO_FILTER = ("accuracy", "energy", "age", "size")  # to be sorted by, too fine to be equal


def list_runs(request: RunsRequest) -> list[RunRecord]:
    """Return the runs that pass all filters, sorted; one that lacks the column comes last.

    A run that can't be read is listed as damaged. Raises ConfigError.
    """
    filters = [parse_filter(text) for text in request.filters]
    if request.sort not in COLUMNS:
        raise ConfigError(f"--sort: {unknown('column', request.sort, COLUMNS)}")
    column = COLUMNS[request.sort]
    records = [read_record(run) for run in run_folders(request.runs_dir)]
    passing = [record for record in records if all(passes(record) for passes in filters)]
    known = [record for record in passing if column(record) is not None]
    known.sort(key=column, reverse=request.reverse)
    return known + [record for record in passing if column(record) is None]


def parse_filter(text: str) -> Callable[[RunRecord], bool]:
    """Return the test that KEY=VALUE is: of a column, or of a setting by dotted or short name.

    VALUE may be alternatives, a,b, with * and ? for any characters. Raises ConfigError.
    """
    key, equals, listed = text.partition("=")
    if not equals or not key:
        raise ConfigError(f'"{text}" is no filter; write KEY=VALUE, as method=tser, or T=1,2')
    if key in NO_FILTER:
        raise ConfigError(f'"{key}" can be sorted by (--sort {key}), but is no filter')
    # an unknown name is an error here, instead of a filter that nothing passes
    dotted = "" if key in COLUMNS else full_key(key)
    alternatives = [(wanted, parse_value(wanted)) for wanted in listed.split(",")]

    def passes(record: RunRecord) -> bool:
        value = record.settings.get(dotted) if dotted else COLUMNS[key](record)
        # as a pattern, or as a value: 0.10 is 0.1
        return value is not None and any(
            fnmatchcase(str(value), wanted) or value == parsed for wanted, parsed in alternatives
        )

    return passes


def find_removable(names: Iterable[Path], runs_dir: Path) -> list[tuple[RunRecord, int]]:
    """Return the runs to remove, each once, with how many students here learned from it.

    Raises RunError for one that is running, is a link, or does not lie under `runs_dir`.
    """
    found = {_place(run): run for run in (find_run(name, runs_dir) for name in names)}
    records = {_place(run): read_record(run) for run in run_folders(runs_dir)}
    # all are looked at before one is removed: a command is done whole or not at all
    for place, run in found.items():
        if run.folder.is_symlink():
            raise RunError(f"{run.folder} is a link to a folder elsewhere; remove the link by hand")
        if place not in records:
            raise RunError(
                f"{run.folder} is no run folder under {runs_dir}, and no other is removed; "
                "--runs-dir names the place"
            )
        # raises where somebody works on it; remove() looks once more
        with _holding(run):
            pass
    taught = [record.environment.get("teacher") for record in records.values()]
    sources = [one.get("source") if isinstance(one, dict) else None for one in taught]
    taught_by = [Path(source).parent for source in sources if isinstance(source, str)]
    return [(records[folder], taught_by.count(folder)) for folder in found]


def _place(run: Run) -> Path:
    # where the folder itself lies: a link among the runs does not make its target one of them
    return run.folder.parent.resolve() / run.folder.name


@contextmanager
def _holding(run: Run) -> Iterator[None]:
    """Hold the lock of a run that nobody works on. Raises RunError where somebody may."""
    with run.lock():
        # A lock tells of processes on this machine; of those on others the status must be believed.
        status: Mapping[str, Any] = {}
        with suppress(RunError):
            status = run.status()
        if status.get("state") == RUNNING and is_elsewhere(status):
            raise RunError(
                f"{run.folder} is running on {status.get('host')}: stop it there. If it is "
                "certainly dead, delete the folder by hand"
            )
        yield


def remove(record: RunRecord) -> None:
    """Delete a run folder with all that is in it; links in it are deleted, not followed.

    Raises RunError where the run has been taken up meanwhile, or can't be deleted.
    """
    # held meanwhile: another process may have taken the run up since it was found
    with _holding(record.run):
        try:
            shutil.rmtree(record.folder)
        except OSError as error:
            raise write_error(record.folder, error) from error
