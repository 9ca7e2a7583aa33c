"""Run folders: where a run writes, and what it says of itself."""

from __future__ import annotations

import json
import os
import socket
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from tser_cli import plugins, registry
from tser_cli.config import FLOAT_BITS, Config, method_label
from tser_cli.engine.runs.provenance import environment
from tser_cli.errors import RunError
from tser_cli.files import make_folder, write_error, write_text
from tser_cli.recipe import Layer, read, resolve

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Run:
    """A run folder and the files in it."""

    folder: Path

    @property
    def kind(self) -> str:
        """Return "teacher" or "student"."""
        said = self.status().get("kind", self.folder.parent.parent.name)
        return "teacher" if said == "teacher" else "student"

    @property
    def name(self) -> str:
        """Return the folder's own name."""
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        """Return where the states to resume from lie."""
        return self.folder / "checkpoints"

    @property
    def model_file(self) -> Path:
        """Return the file of the final weights."""
        return self.folder / MODEL_FILE

    def config(self) -> Config:
        """Return the settings as resolved when the run began. Raises ConfigError, RunError."""
        return resolve([self.settings()])

    def settings(self) -> Layer:
        """Return config.toml as a layer of settings.

        Raises ConfigError, and RunError where it needs a plug-in that is not loaded.
        """
        layer = read(str(self.folder / "config.toml"))
        plugins.check_loaded(self.plugin_records(), registry.used_by(layer.values), self.folder)
        return layer

    def plugin_records(self) -> list[dict[str, Any]]:
        """Return what environment.json says of the plug-ins that the run was made with."""
        return self.environment().get("plugins") or []

    def status(self) -> dict[str, Any]:
        """Return status.json, or {} where it is missing or damaged."""
        return _read_json(self.folder / "status.json")

    def environment(self) -> dict[str, Any]:
        """Return environment.json, or {} where it is missing or damaged."""
        return _read_json(self.folder / "environment.json")

    def time_of(self, event: str) -> float:
        """Return when the run `started` or `finished`, in seconds since 1970; 0 where unknown."""
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
        """Hold the folder's exclusive lock. Raises RunError at once if another process has it."""
        try:
            return filelock.FileLock(self.folder / ".lock").acquire(timeout=0)
        except filelock.Timeout:
            status = self.status()
            raise RunError(
                f"{self.folder} is in use by process {status.get('pid')} on "
                f"{status.get('host')}. Wait for it, or stop it first"
            ) from None
        except OSError as error:
            raise write_error(self.folder / ".lock", error) from error

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


def run_name(kind: str, config: Config, model: str = "") -> str:
    """Name a run by model, T, method, seed and time: `resnet18_T2_tser_s0_20250131-120000`.

    Integer weights are told by their bits: `resnet18_T2_tser_w8_s0_20250131-120000`.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    seed = f"s{config.training.seed}"
    if kind == "teacher":
        return f"{model or config.model.teacher}_{seed}_{stamp}"
    steps, method = config.model.timesteps, method_label(config)
    bits = config.model.weight_bits
    weights = "" if bits == FLOAT_BITS else f"_w{bits}"
    return f"{model or config.model.student}_T{steps}_{method}{weights}_{seed}_{stamp}"


def create(runs_dir: Path, kind: str, config: Config, *, dataset: str = "", model: str = "") -> Run:
    """Make a new run folder with its settings and environment. Raises RunError.

    `dataset` and `model`: what the folder is called after, where the settings do not say it.
    """
    name = run_name(kind, config, model)
    run = Run(_new_folder(runs_dir / kind / (dataset or config.data.name) / name))
    write_text(run.folder / "config.toml", tomli_w.dumps(config.model_dump(mode="json")))
    kept = plugins.keep(run.folder, registry.targets_of(config.flat()))
    run.update_environment(**environment(config.training.seed), plugins=kept)
    run.update_status(kind=kind, state="running", epoch=0, started=_now())
    return run


def _new_folder(base: Path) -> Path:
    """Make and return `base`, or `base`-2 and so on: each caller gets a folder of its own."""
    make_folder(base.parent)
    folder, number = base, 1
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        except OSError as error:
            raise write_error(folder, error) from error
        else:
            return folder
