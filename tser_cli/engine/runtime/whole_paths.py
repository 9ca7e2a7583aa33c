"""Paths in settings, written so that they hold from any folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tser_cli import registry
from tser_cli.config import Config

PATHS = ("data.dir", "model.teacher_weights")
# These name something of the package too; only what exists as a path is one.
NAMES = ("model.teacher", "model.teacher_recipe", "energy.profile")


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


def with_whole_paths(config: Config) -> Config:
    """Return `config` with every path absolute, as seen from the current folder."""
    flat = config.flat()
    paths = {key: _absolute(flat[key]) for key in PATHS if flat[key]}
    found = {key: existing_path(flat[key]) for key in NAMES if flat[key]}
    paths |= {key: str(path.absolute()) for key, path in found.items() if path is not None}
    changed = {key: path for key, path in paths.items() if path != flat[key]}
    return config.updated(changed) if changed else config


def _absolute(text: str) -> str:
    try:
        return str(Path(text).expanduser().absolute())
    except (OSError, RuntimeError, ValueError):  # no path at all: whoever opens it tells
        return text
