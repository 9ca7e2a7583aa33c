"""Where the numbers of an ablation's run come from: code, threads and settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tser_cli.config import Config
from tser_cli.engine.ablation.cell_folder import find_cell
from tser_cli.engine.ablation.folder import settings_of
from tser_cli.engine.ablation.grid import Cell

METHOD, TEMPERATURE = "method.", "method.temperature"


def provenance(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the columns `csv_files.PROVENANCE` of a cell; code and threads only once it finished.

    `weights` are the method's own settings, `settings` all others that are not tser's defaults and
    not varied. On CPUs the threads count too: sums of floats depend on their order.
    """
    run = find_cell(cell, folder)
    return {**settings_in_words(cell), **(code_of(run.environment()) if run else {})}


def code_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what environment.json says of the code; a version where it was no git checkout."""
    git = environment.get("git") or {}
    commit = f"{git['commit']}{'+changes' if git.get('changed') else ''}" if git else ""
    return {
        "commit": commit or f"version {environment.get('tser')}",
        "torch": environment.get("packages", {}).get("torch"),
        "threads": environment.get("threads"),
    }


def settings_in_words(cell: Cell) -> dict[str, Any]:
    """Return `temperature`, `weights` and `settings` of a cell, as `key=value; key=value`."""
    now, usual = settings_of(cell), settings_of(Cell({}, 0, Config()))
    weights = {
        key.removeprefix(METHOD): value
        for key, value in now.items()
        if key.startswith(METHOD) and key not in (TEMPERATURE, "method.name")
    }
    others = {
        key: value
        for key, value in now.items()
        if value != usual.get(key)
        and key not in cell.varied
        and (not key.startswith(METHOD) or key == "method.name")
    }
    return {
        "temperature": now.get(TEMPERATURE),
        "weights": in_words(weights),
        "settings": in_words(others),
    }


def in_words(settings: Mapping[str, Any]) -> str:
    """Return `key=value; key=value`."""
    return "; ".join(f"{key}={value}" for key, value in settings.items())
