"""Run folders: where a run writes, what it says of itself, and how one is found again."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from tser_cli import __version__, plugins, registry
from tser_cli.config import Config, method_label
from tser_cli.errors import ConfigError, RunError, nearest
from tser_cli.files import cannot_write, make_folder, write_text
from tser_cli.recipe import Layer, read, resolve

MODEL_FILE = "model.safetensors"
PACKAGES = (
    *("torch", "torchvision", "spikingjelly", "accelerate", "numpy", "pandas"),
    *("safetensors", "scikit-learn", "pydantic"),
)
UNFINISHED = ("running", "stopped", "failed")


@dataclass(frozen=True)
class Run:
    """A run folder; `kind` is teacher or student."""

    folder: Path

    @property
    def kind(self) -> str:
        """teacher or student."""
        return str(self.status().get("kind", self.folder.parent.parent.name))

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        """Where the states to resume from lie."""
        return self.folder / "checkpoints"

    @property
    def model_file(self) -> Path:
        """The final weights."""
        return self.folder / MODEL_FILE

    def config(self) -> Config:
        """The settings as resolved when the run began. Raises ConfigError, RunError."""
        return resolve([self.settings()])

    def settings(self) -> Layer:
        """config.toml as a layer of settings.

        Raises ConfigError, and RunError where it needs a plug-in that is not loaded.
        """
        layer = read(str(self.folder / "config.toml"))
        plugins.check_loaded(self.plugin_records(), registry.used_by(layer.values), self.folder)
        return layer

    def plugin_records(self) -> list[dict[str, Any]]:
        """What environment.json says of the plug-ins that the run was made with."""
        return self.environment().get("plugins") or []

    def status(self) -> dict[str, Any]:
        """status.json, or {} where it is missing or damaged."""
        return _read_json(self.folder / "status.json")

    def environment(self) -> dict[str, Any]:
        """environment.json, or {} where it is missing or damaged."""
        return _read_json(self.folder / "environment.json")

    def time_of(self, event: str) -> float:
        """When the run was `started` or `finished`, in seconds since 1970; 0 where unknown."""
        try:
            return datetime.fromisoformat(str(self.status().get(event))).timestamp()
        except ValueError:
            return 0.0

    def update_status(self, **changes: Any) -> None:
        """Change entries of status.json; pid, host and time are kept up to date."""
        status = {**self.status(), **changes, "pid": os.getpid(), "host": socket.gethostname()}
        status["updated"] = _now()
        write_text(self.folder / "status.json", json.dumps(status, indent=2) + "\n")

    def update_environment(self, **changes: Any) -> None:
        """Change entries of environment.json."""
        text = json.dumps({**self.environment(), **changes}, indent=2) + "\n"
        write_text(self.folder / "environment.json", text)

    def lock(self) -> AbstractContextManager[Any]:
        """Holds the folder's exclusive lock inside. Raises RunError at once if another does."""
        try:
            return filelock.FileLock(self.folder / ".lock").acquire(timeout=0)
        except filelock.Timeout:
            status = self.status()
            raise RunError(
                f"{self.folder} is in use by process {status.get('pid')} on "
                f"{status.get('host')}. Wait for it, or stop it first"
            ) from None
        except OSError as error:
            raise RunError(cannot_write(self.folder / ".lock", error)) from error

    def remove_leftovers(self) -> None:
        """Remove the parts of files that a killed process left behind; only under the lock."""
        for part in self.folder.rglob(".*.part"):
            part.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="microseconds")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def run_name(kind: str, config: Config) -> str:
    """Model, T, method, seed and time: `resnet18_T2_tser_s0_20250131-120000`."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    seed = f"s{config.training.seed}"
    if kind == "teacher":
        return f"{config.model.teacher}_{seed}_{stamp}"
    model = config.model
    return f"{model.student}_T{model.timesteps}_{method_label(config)}_{seed}_{stamp}"


def create(runs_dir: Path, kind: str, config: Config) -> Run:
    """Make a new run folder with its settings and environment. Raises RunError."""
    run = Run(_new_folder(runs_dir / kind / config.data.name / run_name(kind, config)))
    write_text(run.folder / "config.toml", tomli_w.dumps(config.model_dump(mode="json")))
    kept = plugins.keep(run.folder, registry.targets_of(config.flat()))
    run.update_environment(**environment(config), plugins=kept)
    run.update_status(kind=kind, state="running", epoch=0, started=_now())
    return run


def _new_folder(base: Path) -> Path:
    """`base`, or `base`-2 and so on: whoever makes the folder owns it, in the same second too."""
    make_folder(base.parent)
    folder, number = base, 1
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        except OSError as error:
            raise RunError(cannot_write(folder, error)) from error
        else:
            return folder


def environment(config: Config) -> dict[str, Any]:
    """Versions, git state, machine and command line, for environment.json."""
    return {
        "tser": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "git": _git_state(),
        "command": sys.argv,
        "seed": config.training.seed,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_state() -> dict[str, Any]:
    folder = Path(__file__).resolve().parent
    try:
        ask = ["git", "-C", str(folder)]
        # a package that is installed inside some other project's checkout is not part of it
        tracked = [*ask, "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, timeout=5, check=True)
        commit = subprocess.run(
            [*ask, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
        changes = subprocess.run(
            [*ask, "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.stdout.strip(), "changed": bool(changes.stdout.strip())}


def all_runs(runs_dir: Path, kind: str = "*", dataset: str = "*") -> Iterator[Run]:
    """The run folders under `runs_dir`, newest first."""
    found = [Run(path.parent) for path in runs_dir.glob(f"{kind}/{dataset}/*/status.json")]
    yield from sorted(found, key=lambda run: run.time_of("started"), reverse=True)


def newest_finished(
    runs_dir: Path, kind: str, dataset: str = "*", model: str | None = None
) -> Run | None:
    """The finished run that ended last, of one architecture where `model` is given."""
    finished = [
        run
        for run in all_runs(runs_dir, kind, dataset)
        if run.status().get("state") == "finished" and model in (None, run.status().get("model"))
    ]
    return max(finished, key=lambda run: run.time_of("finished"), default=None)


def open_run(path: Path) -> Run:
    """The run at `path`. Raises RunError where it is none, or is not finished."""
    if not (path / "status.json").is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RunError(f"{path} is not a run folder{nearest(path.name, beside)}: no status.json")
    run = Run(path)
    if run.status().get("state") != "finished":
        raise RunError(
            f"run {path} is {run.status().get('state', 'unreadable')}, not finished; repeat the "
            "command that began it, and it will go on"
        )
    return run


def begun_batch_size(runs_dir: Path, kind: str, config: Config) -> int:
    """The batch size of the unfinished run that is like `config` but for it; 0 without one."""
    for run in _unfinished(runs_dir, kind, config):
        try:
            size = run.config().training.batch_size
        except ConfigError:  # a damaged config.toml: that run is not gone on with
            continue
        if not differences(run, config.updated({"training.batch_size": size})):
            return size
    return 0


def _unfinished(runs_dir: Path, kind: str, config: Config) -> list[Run]:
    return [
        run
        for run in all_runs(runs_dir, kind, config.data.name)
        if run.status().get("state") in UNFINISHED and run.status().get("resumable", True)
    ]


def find_unfinished(runs_dir: Path, kind: str, config: Config, must: bool) -> Run | None:
    """The newest run to go on with: unfinished, resumable, and with the same settings.

    `must`: raises RunError where there is no unfinished run, ConfigError that lists the
    differences where the newest unfinished one has other settings.
    """
    unfinished = _unfinished(runs_dir, kind, config)
    for run in unfinished:
        if not differences(run, config):
            return run
    if must and unfinished:
        listed = "\n".join(f"  {line}" for line in differences(unfinished[0], config))
        raise ConfigError(f"{unfinished[0].folder} can't go on with other settings:\n{listed}")
    if must:
        raise RunError(f"--resume must: no unfinished {kind} run of {config.data.name}")
    return None


def differences(run: Run, config: Config) -> list[str]:
    """`key: old -> new` for every setting that forbids a resume."""
    try:
        before = run.config().flat()
    except (ConfigError, RunError) as error:
        return [str(error)]
    return plugins.changes(run.plugin_records()) + [
        f"{key}: {before.get(key)!r} -> {value!r}"
        for key, value in config.flat().items()
        if before.get(key) != value and not config.policy(key).resume
    ]
