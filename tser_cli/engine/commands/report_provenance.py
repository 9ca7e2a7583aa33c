"""How a run was made, for a report: its settings, environment and commands, as its folder says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from tser_cli.config import keys
from tser_cli.engine.commands.report_files import existing, label, number
from tser_cli.engine.runs import entries
from tser_cli.engine.runs.result import recorded
from tser_cli.engine.runs.run_folder import Run
from tser_cli.report.page_values import Setting
from tser_cli.visible import cut, visible

MOST_LISTED = 200  # entries of environment.json


def stated_settings(run: Run) -> dict[str, Any]:
    """Return config.toml by dotted key, as it stands. Raises ConfigError, RunError."""
    existing(run.folder, "config.toml")
    return entries.stated_settings(run.folder)


def settings(stated: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Return the settings that are not tser's defaults."""
    usual = keys()
    return tuple(
        Setting(label(key), _words(value), _words(usual[key]) if key in usual else None)
        for key, value in stated.items()
        if key not in usual or _words(usual[key]) != _words(value)
    )


def in_words(stated: Mapping[str, Any]) -> dict[str, str]:
    """Return settings with their values in words."""
    return {label(key): _words(value) for key, value in stated.items()}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{label(key)} {_words(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return cut(visible(f"{value:g}" if isinstance(value, float) else str(value)), 300) or "(empty)"


def surroundings(run: Run) -> dict[str, Any]:
    """Return environment.json. Raises RunError where there is none, or it is damaged."""
    existing(run.folder, "environment.json")
    return run.environment()


def environment(found: Mapping[str, Any]) -> dict[str, str]:
    """Return environment.json as labelled values in words."""
    listed = [key for key in found if key not in ("command", "commands")]
    return {label(key): _words(found[key]) for key in listed[:MOST_LISTED]}


def commands(run: Run, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the commands that were typed for the run, oldest first, and one that repeats it.

    The last one takes every setting from the folder. `found`: environment.json.
    """
    listed = found.get("commands") or [found]
    typed = [_typed(entry.get("command")) for entry in listed if isinstance(entry, dict)]
    verb = "train-teacher" if run.kind == "teacher" else "distill"
    again = f"tser {verb} --recipe {shlex.quote(str(run.folder))} --resume never"
    return (*dict.fromkeys(line for line in typed if line), again)


def _typed(words: Any) -> str:
    if not isinstance(words, list) or not words:
        return ""
    return cut(visible(shlex.join(["tser", *map(str, words[1:])])), 2000)


def facts(run: Run, stated: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run is, as it recorded it, else as its settings or environment.json say.

    `model`, `dataset`, `method`, `teacher`, `timesteps`, `seed`, `epochs`, `seconds`, `finished`,
    `energy_budget_pj` and the `energy_pj` that was held to it.
    """
    known, teacher = recorded(run), found.get("teacher")
    stated_model = stated.get("model.student" if run.kind == "student" else "model.teacher")
    taught_by = teacher.get("model") if isinstance(teacher, dict) else None
    words = {
        "model": known.get("model") or stated_model or "network",
        "dataset": known.get("dataset") or stated.get("data.name") or run.folder.parent.name,
        "method": known.get("method") or stated.get("method.name") or "",
        "teacher": known.get("teacher") or taught_by or "",
        "seed": stated.get("training.seed", ""),
        "finished": str(known.get("finished", ""))[:16].replace("T", " "),
        "device": found.get("device", ""),
    }
    return {
        **{key: label(value) for key, value in words.items()},
        "timesteps": number(known.get("timesteps") or stated.get("model.timesteps")),
        "epochs": number(known.get("epoch")),
        **{key: number(known.get(key)) for key in ("energy_pj", "energy_budget_pj")},
        "seconds": number(known.get("seconds") or found.get("wall_seconds")),
    }
