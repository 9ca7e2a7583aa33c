"""Run folders: where a run writes, what it says of itself, and what it was made with."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from tser_cli.base import __version__, files
from tser_cli.base.errors import DamagedFileError, RunError, warn_once
from tser_cli.settings import plugins, registry
from tser_cli.settings.config import FLOAT_BITS, Config, method_label
from tser_cli.settings.recipe import Layer, read, resolve

MODEL_FILE = "model.safetensors"
IMAGES = "images_sha256"  # in status.json: the fingerprint of data of your own
# In environment.json of a run that is no training: the run that its weights come from.
PARENT = "parent"
# In environment.json of a student that comes with the package: its name, and its parameters.
PACKAGED = "packaged"
NUMBER = (int, float)
STATUS_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("kind", "state", "why", "host", "model", "dataset", "sha256", IMAGES), str),
    **dict.fromkeys(("started", "finished", "updated"), str),
    **dict.fromkeys(("pid", "epoch"), int),
    **dict.fromkeys(("validation_fraction", "test_fraction"), NUMBER),
    "data": dict,  # where samples of events come from, `Dataset.facts`
    "resumable": bool,
}
ENVIRONMENT_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("git", "packages", "teacher", PARENT, PACKAGED), dict),
    **dict.fromkeys(("plugins", "command", "commands"), list),
    "wall_seconds": NUMBER,
    "threads": int,
}


@dataclass(frozen=True)
class Run:
    """A run folder and the files in it.

    `_kept`: what this process wrote last, by file, and whether the folder was a link when locked.
    """

    folder: Path
    _kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """Return "teacher" or "student"."""
        said = self.status().get("kind", self.folder.parent.parent.name)
        return "teacher" if said == "teacher" else "student"

    @property
    def name(self) -> str:
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
        # a plug-in is code, which reading a run must not import by itself: it has to be there
        plugins.check_loaded(self.plugin_records(), registry.used_by(layer.values), self.folder)
        return layer

    def write_settings(self, config: Config, left_out: Iterable[str] = ()) -> None:
        """Write config.toml: when the run begins, and again where a resumed run has other ones."""
        document = config.model_dump(mode="json", exclude=set(left_out))
        files.write_text(self.folder / "config.toml", tomli_w.dumps(document))

    def plugin_records(self) -> list[dict[str, Any]]:
        """Return what environment.json says of the plug-ins that the run was made with."""
        records = self.environment().get("plugins", [])
        return [record for record in records if isinstance(record, dict)]

    def status(self) -> dict[str, Any]:
        """Return status.json, or {} where there is none. Raises RunError where it is damaged."""
        return _read(self.folder / "status.json", STATUS_TYPES)

    def environment(self) -> dict[str, Any]:
        """Return environment.json, {} where there is none. Raises RunError where it is damaged."""
        return _read(self.folder / "environment.json", ENVIRONMENT_TYPES)

    def update_status(self, **changes: Any) -> None:
        """Change entries of status.json; pid, host and time are kept up to date."""
        machine = {"pid": os.getpid(), "host": socket.gethostname(), "updated": now()}
        self._update("status.json", _if_sound(self.status), {**changes, **machine})

    def update_environment(self, **changes: Any) -> None:
        """Change entries of environment.json."""
        self._update("environment.json", _if_sound(self.environment), changes)

    def _update(self, name: str, found: dict[str, Any], changes: dict[str, Any]) -> None:
        self.check_place()
        # the file is the truth: another process may have written it since it was read; where it
        # was damaged meanwhile, what this one wrote last serves
        document = {**(found or self._kept.get(name, {})), **changes}
        files.write_json(self.folder / name, document)
        self._kept[name] = document

    def check_place(self) -> None:
        """Raise RunError where the locked folder became a link: what is written would go there."""
        if self.folder.is_symlink() and not self._kept.get("link", True):
            raise RunError(
                f"{self.folder} was replaced by a link to {self.folder.readlink()} meanwhile; "
                "nothing is written there. Put the folder back and repeat the command"
            )

    def lock(self) -> AbstractContextManager[Any]:
        """Hold the folder's exclusive lock. Raises RunError at once if another process has it."""
        try:
            # at once or not at all: who waits can't know when the other one ends
            held = files.hold_lock(self.folder / ".lock")
        except filelock.Timeout:
            status = _if_sound(self.status)
            raise RunError(
                f"{self.folder} is in use by process {status.get('pid')} on "
                f"{status.get('host')}. Wait for it, or stop it first"
            ) from None
        self._kept["link"] = self.folder.is_symlink()
        return held

    def remove_leftovers(self) -> None:
        """Remove the parts of files that a killed process left behind; only under the lock."""
        # a process that is alive would be writing these very files
        files.remove_parts(self.folder.rglob(".*.part"))


def time_of(status: Mapping[str, Any], event: str) -> float:
    """Return when a run `started` or `finished`, in seconds since 1970; 0 where unknown."""
    try:
        return datetime.fromisoformat(str(status.get(event))).timestamp()
    except (ValueError, OverflowError, OSError):  # no date, or one that has no such number
        return 0.0


def now() -> str:
    """Return the time, as status.json has it."""
    # so fine that runs of the same second still have an order
    return datetime.now().astimezone().isoformat(timespec="microseconds")


def _read(path: Path, types: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}
    try:
        return files.read_json(path, types=types)
    except DamagedFileError as error:
        raise RunError(f"run folder {path.parent} is damaged: {error}") from error


def _if_sound(content: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    # A training is not lost because its folder was damaged meanwhile.
    try:
        return content()
    except RunError as error:
        warn_once(str(error))
        return {}


def run_name(kind: str, config: Config, model: str = "") -> str:
    """Name a run by model, T, method, seed and time: `resnet18_T2_tser_s0_20250131-120000`.

    Integer weights are told by their bits: `resnet18_T2_tser_w8_s0_20250131-120000`,
    and an energy budget by itself: `resnet18_T2_tser_4uJ_s0_20250131-120000`.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    seed = f"s{config.training.seed}"
    if kind == "teacher":
        return f"{model or config.model.teacher}_{seed}_{stamp}"
    steps, method = config.model.timesteps, method_label(config)
    bits = config.model.weight_bits
    weights = "" if bits == FLOAT_BITS else f"_w{bits}"
    budget = ""
    if config.has_energy_budget:
        # "25 %" -> "25pct", "4 µJ" -> "4uJ": as a shell takes it without quotes
        word = config.energy.budget.replace("%", "pct").replace("µ", "u").replace("\u03bc", "u")
        budget = "_" + "".join(word.split())
    student = (model or config.model.student).replace(":", ".")  # MODULE:NAME; no file system's
    return f"{student}_T{steps}_{method}{weights}{budget}_{seed}_{stamp}"


def create(
    runs_dir: Path,
    kind: str,
    config: Config,
    *,
    dataset: str = "",
    model: str = "",
    left_out: Iterable[str] = (),
    parent: Mapping[str, str] | None = None,
) -> Run:
    """Make a new run folder with its settings and environment. Raises RunError.

    `dataset` and `model`: what the folder is called after, where the settings do not say it.
    `left_out`: sections of the settings that the run does not go by. `parent`: see `PARENT`.
    """
    name = run_name(kind, config, model)
    # first: it takes a while, and a kill meanwhile leaves nothing behind
    recorded = {**environment(config.training.seed), **({PARENT: parent} if parent else {})}
    run = Run(_new_folder(runs_dir / kind / (dataset or config.data.name) / name))
    run.write_settings(config, left_out)
    kept = plugins.keep(run.folder, registry.targets_of(config.flat()))
    run.update_environment(**recorded, plugins=kept)
    # Last: a folder is a run's to others as soon as it has a status, and then has its settings too.
    run.update_status(kind=kind, state="running", epoch=0, started=now())
    return run


def _new_folder(base: Path) -> Path:
    """Make and return `base`, or `base`-2 and so on: each caller gets a folder of its own."""
    files.make_folder(base.parent)
    # the name has seconds alone: cells of an ablation may begin in the same one
    folder, number = base, 1
    while True:
        try:
            folder.mkdir()  # and not whether it exists: two processes may ask at once
        except FileExistsError:
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        except OSError as error:
            raise files.write_error(folder, error) from error
        else:
            return folder


PACKAGES = (
    *("torch", "torchvision", "spikingjelly", "accelerate", "numpy", "pandas"),
    *("safetensors", "scikit-learn", "pydantic"),
)


def environment(seed: int) -> dict[str, Any]:
    """Return versions, git state, machine and command line, for environment.json."""
    import torch  # runs are listed, and their names completed, without it

    return {
        "tser": __version__,
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "git": _git_state(),
        "command": sys.argv,
        "seed": seed,
        "threads": torch.get_num_threads(),  # the order of sums, and so their last bits
    }


def version_of(package: str) -> str:
    """Return the version of an installed package, else "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_state() -> dict[str, Any]:
    package = Path(__file__).resolve().parents[2]
    try:
        # A package installed inside some other project's repository is not part of it.
        if Path(_git(package, "rev-parse", "--show-toplevel")) != package.parent:
            return {}
        changed = bool(_git(package, "status", "--porcelain"))
        return {"commit": _git(package, "rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
