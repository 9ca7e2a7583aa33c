"""Show results as JSON, for --json: one document on standard output, and nothing else there."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from tser_cli.cli import present

if TYPE_CHECKING:
    from tser_cli.engine.commands.ablate import AblationResult
    from tser_cli.engine.runs.record import RunResult


def show(document: Any) -> None:
    """Show one JSON document; a number that is not finite, which JSON has not, becomes null."""
    write(json.dumps(plain(document), indent=2, allow_nan=False))


def write(text: str) -> None:
    """Write what programs read to standard output, as it stands: neither wrapped nor cut."""
    if not present.output().quiet:
        sys.stdout.write(f"{text}\n")


def show_run(result: RunResult) -> None:
    """Show what a training measured, and where its folder is."""
    show({"folder": result.folder, **result.to_json()})


def show_ablation(result: AblationResult) -> None:
    """Show the rows of summary.csv, the files, and what failed."""
    found = {field.name: getattr(result, field.name) for field in fields(result)}
    request = found.pop("request")
    show({**found, "axes": request.axes, "measure": request.measure})


def plain(value: Any) -> Any:
    """Return what JSON has a form for: of numbers, texts, paths, lists, dicts and dataclasses."""
    if hasattr(value, "model_dump"):  # settings
        return plain(value.model_dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | None) else str(value)
