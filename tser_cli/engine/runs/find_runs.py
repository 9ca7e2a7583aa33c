"""Find runs again: the newest finished one, one to go on with, one at a path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tser_cli import plugins
from tser_cli.config import EPOCHS, Config
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.whole_paths import with_whole_paths
from tser_cli.errors import ConfigError, RunError, nearest, warn_once
from tser_cli.files import is_file, is_folder

LEFT_OPEN = {"training.batch_size": 0, "training.precision": "auto"}
UNFINISHED = ("running", "stopped", "failed")


def all_runs(runs_dir: Path, kind: str = "*", dataset: str = "*") -> Iterator[Run]:
    """Yield the run folders under `runs_dir`, newest first.

    One whose status.json is damaged is named in a warning and left out.
    """
    names = runs_dir.glob(f"{kind}/{dataset}/*/status.json") if is_folder(runs_dir) else ()
    found = [Run(path.parent) for path in names]
    sound = [run for run in found if _is_sound(run)]
    yield from sorted(sound, key=lambda run: run.time_of("started"), reverse=True)


def _is_sound(run: Run) -> bool:
    try:
        run.status()
    except RunError as error:
        warn_once(str(error))
        return False
    return True


def newest_finished(
    runs_dir: Path, kind: str, dataset: str = "*", model: str | None = None
) -> Run | None:
    """Return the run that finished last, of one architecture where `model` is given."""
    finished = [
        run
        for run in all_runs(runs_dir, kind, dataset)
        if run.status().get("state") == "finished" and model in (None, run.status().get("model"))
    ]
    return max(finished, key=lambda run: run.time_of("finished"), default=None)


def open_run(path: Path) -> Run:
    """Return the run at `path`. Raises RunError where it is none, or is not finished."""
    if not is_file(path / "status.json"):
        beside = [entry.name for entry in path.parent.iterdir()] if is_folder(path.parent) else []
        raise RunError(f"{path} is not a run folder{nearest(path.name, beside)}: no status.json")
    run = Run(path)
    state = run.status().get("state", "of no known state")
    if state != "finished":
        raise RunError(
            f"run {path} is {state}, not finished; repeat the "
            "command that began it, and it will go on"
        )
    return run


def begun_like(runs_dir: Path, kind: str, config: Config, must: bool = False) -> Config | None:
    """Return `config` with what it leaves open as in the unfinished run that is else like it.

    Open are a batch size of 0 and a precision of "auto". None where there is no such run.
    """
    for run in _unfinished(runs_dir, kind, config):
        try:
            before = run.config().flat()
        except (ConfigError, RunError):  # damaged: that run is not gone on with
            continue
        opened = config.updated({key: before[key] for key in left_open(config)})
        if not differences(run, opened, must):
            return opened
    return None


def left_open(config: Config) -> list[str]:
    """Return the settings that are chosen when a run begins, and then are the run's."""
    values = config.flat()
    return [key for key, open_value in LEFT_OPEN.items() if values[key] == open_value]


def _unfinished(runs_dir: Path, kind: str, config: Config) -> list[Run]:
    return [
        run
        for run in all_runs(runs_dir, kind, config.data.name)
        if run.status().get("state") in UNFINISHED and run.status().get("resumable", True)
    ]


def find_unfinished(runs_dir: Path, kind: str, config: Config, must: bool) -> Run | None:
    """Return the newest run to go on with: unfinished, resumable, and with the same settings.

    `must`: one of another number of epochs will do too, though its learning rate will be another;
    raises RunError where there is no unfinished run, ConfigError that lists the
    differences where the newest unfinished one has other settings.
    """
    unfinished = _unfinished(runs_dir, kind, config)
    for run in unfinished:
        if not differences(run, config, must):
            return run
    if must and unfinished:
        listed = "\n".join(f"  {line}" for line in differences(unfinished[0], config, must))
        raise ConfigError(f"{unfinished[0].folder} can't go on with other settings:\n{listed}")
    if must:
        raise RunError(f"--resume must: no unfinished {kind} run of {config.data.name}")
    return None


def differences(run: Run, config: Config, must: bool = False) -> list[str]:
    """Return `key: old -> new` for every setting that forbids a resume.

    `must`: the number of epochs does not.
    """
    allowed = (EPOCHS,) if must else ()
    try:
        # runs of before kept paths as they were given
        before = with_whole_paths(run.config()).flat()
        records = run.plugin_records()
    except (ConfigError, RunError) as error:
        return [str(error)]
    return plugins.changes(records) + [
        f"{key}: {before.get(key)!r} -> {value!r}"
        for key, value in config.flat().items()
        if before.get(key) != value and key not in allowed and not config.policy(key).resume
    ]
