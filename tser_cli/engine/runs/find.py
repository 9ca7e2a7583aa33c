"""Find runs again: by path, name or beginning of a name, the newest one, one to resume."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tser_cli.base.errors import ConfigError, RunError, nearest, warn_once
from tser_cli.base.files import foreign, is_file, is_folder
from tser_cli.engine.runs import students
from tser_cli.engine.runs.folder import PARENT, Run, time_of
from tser_cli.settings import plugins, registry
from tser_cli.settings.config import EPOCHS, Config

LATEST = "latest"
ANY = "*"
KINDS = ("teacher", "student")
MOST_CANDIDATES = 10
LISTED = "tser runs lists them, tser list students those that come with tser"
Status = Mapping[str, Any]
Parent = Mapping[str, str] | None


def run_folders(runs_dir: Path, kind: str = ANY) -> list[Run]:
    """Return every run folder under `runs_dir`, damaged ones too, in the order of their names.

    A folder is a run's where it has a status.json or a config.toml; none of them is opened.
    """
    kinds = KINDS if kind == ANY else (kind,)
    found = [path for of in kinds for path in _folders(_folders([runs_dir / of]))]
    # either will do: a run whose status is lost is damaged, and still to be listed
    files = ("status.json", "config.toml")
    return [Run(path) for path in found if any(os.path.lexists(path / name) for name in files)]


def _folders(places: Iterable[Path]) -> list[Path]:
    inside: list[Path] = []
    for place in places:
        with suppress(OSError, ValueError):  # no folder, one that is closed, or no name at all
            inside += sorted(entry for entry in place.iterdir() if is_folder(entry))
    return inside


def find_run(named: Path, runs_dir: Path, kind: str = ANY) -> Run:
    """Return the run to use, by a path, a name, an unambiguous beginning of one, or `latest`.

    `latest` is the run that finished last. A path leads anywhere; the others are looked for among
    the runs of `kind` under `runs_dir`, where a packaged student, by its name, is copied to. The
    run need not be finished. Raises RunError, which names the nearest or the candidates.
    """
    # a path first: what lies there is meant, whatever the runs are called
    if is_file(named / "status.json"):
        return Run(named)
    if not_ours := foreign(named):
        raise RunError(f"{not_ours}. Name a run; tser runs lists them")
    name = str(named)
    if _is_student(named.as_posix(), kind):
        return students.copied(named.as_posix(), runs_dir)
    if named.name != name or name in ("", ".", ".."):
        raise _no_run_folder(named)
    if name == LATEST:
        for newest in finished(runs_dir, kind):
            return newest
        what = "run" if kind == ANY else kind
        raise RunError(f"there is no finished {what} under {runs_dir}; --runs-dir names the place")
    runs = run_folders(runs_dir, kind)
    # a whole name first: it may be the beginning of others, as that of a run begun twice is
    fitting = [run for run in runs if run.name == name] or [
        run for run in runs if run.name.startswith(name)
    ]
    if not fitting and is_folder(named):
        raise _no_run_folder(named)
    if not fitting:
        near = nearest(name, [LATEST, *(run.name for run in runs)])
        raise RunError(f'there is no run "{name}" under {runs_dir}{near}. {LISTED}')
    if len(fitting) > 1:
        lines = [f"  {run.folder}" for run in fitting[:MOST_CANDIDATES]]
        if len(fitting) > len(lines):
            lines.append(f"  and {len(fitting) - len(lines)} more")
        raise RunError(f'"{name}" may mean {len(fitting)} runs:\n' + "\n".join(lines))
    return fitting[0]


def run_or_name(name: str, runs_dir: Path, kind: str = ANY) -> str:
    """Return the folder of the run that `name` means; `name` itself where it means none.

    For names that may also be something else: an architecture, a file, a recipe. Raises RunError
    where it may mean several runs.
    """
    runs = run_folders(runs_dir, kind) if name else []
    begun = any(run.name.startswith(name) for run in runs)
    if name == LATEST or begun or _is_student(name, kind):
        return str(find_run(Path(name), runs_dir, kind).folder)
    return name


def _is_student(name: str, kind: str) -> bool:
    """Return whether a packaged student is called `name`, and one is looked for."""
    return kind in (ANY, "student") and name in students.available()


def _no_run_folder(path: Path) -> RunError:
    beside = [entry.name for entry in path.parent.iterdir()] if is_folder(path.parent) else []
    near = nearest(path.name, beside) or nearest(path.as_posix(), students.available())
    return RunError(f"{path} is not a run folder{near}: no status.json. {LISTED}")


def all_runs(runs_dir: Path, kind: str = ANY, dataset: str = ANY) -> list[tuple[Run, Status]]:
    """Return the runs under `runs_dir` with what their status.json says, newest first.

    Each status is read once. A run whose status is damaged is named in a warning and left out.
    """
    names = runs_dir.glob(f"{kind}/{dataset}/*/status.json") if is_folder(runs_dir) else ()
    found: list[tuple[Run, Status]] = []
    for path in names:
        run = Run(path.parent)
        try:
            found.append((run, run.status()))
        except RunError as error:
            warn_once(str(error))
    return sorted(found, key=lambda one: time_of(one[1], "started"), reverse=True)


def finished(
    runs_dir: Path, kind: str, dataset: str = ANY, fits: Callable[[Status], bool] | None = None
) -> list[Run]:
    """Return the finished runs whose status `fits`; the one that finished last comes first."""
    found = [
        (run, status)
        for run, status in all_runs(runs_dir, kind, dataset)
        if status.get("state") == "finished" and (fits is None or fits(status))
    ]
    # by what it recorded: a folder that was copied has new times of its files
    ordered = sorted(found, key=lambda one: time_of(one[1], "finished"), reverse=True)
    return [run for run, _ in ordered]


def open_run(named: Path, runs_dir: Path, kind: str = ANY) -> Run:
    """Return the finished run to use, see `find_run`. Raises RunError where it is not finished."""
    run = find_run(named, runs_dir, kind)
    state = run.status().get("state", "of no known state")
    if state != "finished":
        raise RunError(
            f"run {run.folder} is {state}, not finished; repeat the command that began it, and it "
            "is resumed"
        )
    return run


def unfinished(runs_dir: Path, kind: str, config: Config) -> Iterator[Run]:
    """Yield the runs of the data set of `config` that can be resumed, newest first."""
    for run, status in all_runs(runs_dir, kind, config.data.name):
        # one that says running may have been killed: its lock tells, once it is taken up
        open_ended = status.get("state") in ("running", "stopped", "failed")
        if open_ended and status.get("resumable", True):
            yield run


def find_unfinished(
    runs_dir: Path, kind: str, config: Config, must: bool, parent: Parent = None
) -> Run | None:
    """Return the newest run to resume: unfinished, resumable, with the same settings and parent.

    `must`: one of another number of epochs will do too, though its learning rate will be another;
    raises RunError where there is no unfinished run, ConfigError that lists the
    differences where the newest unfinished one has other settings.
    """
    others = []
    for run in unfinished(runs_dir, kind, config):
        found = differences(run, config, must, parent)
        if not found:
            return run
        others.append((run, found))
    if must and others:
        newest, found = others[0]
        listed = "\n".join(f"  {line}" for line in found)
        raise ConfigError(f"{newest.folder} can't be resumed with other settings:\n{listed}")
    if must:
        raise RunError(f"--resume must: no unfinished {kind} run of {config.data.name}")
    return None


def differences(run: Run, config: Config, must: bool = False, parent: Parent = None) -> list[str]:
    """Return `key: old -> new` for every setting that forbids a resume.

    `must`: the number of epochs does not. `parent`: None for a training, see `folder.PARENT`.
    """
    allowed = (EPOCHS,) if must else ()
    try:
        # code counts as settings do: a plug-in that was changed gives other results
        before, records = run.config().flat(), run.plugin_records()
        if run.environment().get(PARENT) != parent:
            return ["it is no training: repeat the tser quantize that began it"]
    except (ConfigError, RunError) as error:
        return [str(error)]
    return plugins.changes(records) + [
        f"{key}: {before.get(key)!r} -> {value!r}"
        for key, value in config.flat().items()
        if before.get(key) != value and key not in allowed and not config.policy(key).resume
    ]


def existing_path(name: str) -> Path | None:
    """Return the folder or file called `name`, or None; an architecture's name is never one."""
    if name in registry.MODELS:
        return None
    # A name too long, a folder that is closed or a ~user that is unknown is no path.
    with suppress(OSError, RuntimeError, ValueError):
        path = Path(name).expanduser()
        if path.is_dir() or path.is_file():
            return path
    return None
