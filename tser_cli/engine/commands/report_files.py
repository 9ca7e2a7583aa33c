"""What the files of a run folder say, for a report: each part by itself, or why it is missing.

The folder may come from anybody: nothing in it is run, and a damaged file costs its own part alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tser_cli.csv_words import ALL, TOTAL
from tser_cli.engine.runs.run_folder import Run
from tser_cli.errors import RunError, TserError
from tser_cli.files import is_file, read_json
from tser_cli.report.csv_files import (
    ENERGY,
    INTEGER,
    PER_TIMESTEP,
    Schema,
    early_exit_schema,
    read_table,
)
from tser_cli.report.page_values import (
    Accuracy,
    Curves,
    Energy,
    Missing,
)
from tser_cli.report.predictions import PREDICTIONS
from tser_cli.report.statistics import proportion_interval
from tser_cli.visible import cut, visible

if TYPE_CHECKING:
    import pandas as pd

Value = TypeVar("Value")
# What a file of the right kind with wrong content can make its reader raise.
DAMAGED = (ValueError, KeyError, TypeError, ArithmeticError, LookupError, OSError, MemoryError)
MOST_BYTES = 2**26  # of a table
MAX_TIMESTEPS = 1024  # that tser evaluate measures
MOST_STEPS = 16  # time steps that the parts with a row or mark for each step show
MOST_EPOCHS = 1000
MOST_LAYERS = 300
LABEL = 80  # characters of a name
PRICED = ("firing_rate", "sop_value", "macs", "energy_pj", "ann_macs", "ann_energy_pj")
NO_TERMS = {
    *("epoch", "lr", "train_accuracy", "validation_accuracy", "images_per_second", "seconds"),
}
MAKES = {
    "per_timestep.csv": "tser evaluate writes it",
    "metrics.csv": "training writes it at the end of an epoch",
    "energy.csv": "tser distill writes it when a student is finished",
    PREDICTIONS: "tser distill writes it when a student is finished",
    "config.toml": "training writes it when a run begins",
}


def part(name: str, find: Callable[[], Value]) -> Value | Missing:
    """Return what `find` returns, or why the part that the file `name` is for can't be shown."""
    try:
        return find()
    except TserError as error:
        return Missing(str(error))
    except DAMAGED as error:
        return Missing(f"{name} is damaged: {cut(str(error) or type(error).__name__, 200)}")


def label(value: Any) -> str:
    """Return a name from outside as one short, visible line."""
    return cut(visible(str(value).replace("\n", " ")), LABEL)


def existing(folder: Path, name: str) -> Path:
    """Return the file of that name. Raises RunError where there is none, or it is too large.

    A link is not followed: a folder from somebody else may hold one that leads to a file of the
    user's, which would then stand on the page.
    """
    path = folder / name
    if path.is_symlink():
        raise RunError(f"{name} is a link, which a report does not follow")
    if not is_file(path):
        made = MAKES.get(name)
        raise RunError(f"there is no {name} in the folder{f'; {made}' if made else ''}")
    if path.stat().st_size > MOST_BYTES:
        raise RunError(f"{name} has more than {MOST_BYTES:,} bytes")
    return path


def table(run: Run, name: str, schema: Schema) -> list[dict[str, Any]]:
    """Return the rows of a table; empty fields, NaN and infinities are None.

    Raises RunError where there is no file, ValueError where it is damaged or has no rows.
    """
    rows = plain_rows(read_table(existing(run.folder, name), schema))
    if not rows:
        raise ValueError("it has no rows")
    return rows


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row a dict, of plain values; what is missing or not finite is None."""
    records = frame.to_dict("records")
    return [{str(key): _plain(value) for key, value in row.items()} for row in records]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def thinned(rows: Sequence[Value], most: int) -> list[Value]:
    """Return at most `most` of the rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(n * (len(rows) - 1) / (most - 1))] for n in range(most)]


def accuracy(run: Run) -> Accuracy:
    """Return per_timestep.csv with its intervals. Raises RunError; ValueError where damaged."""
    found = table(run, "per_timestep.csv", PER_TIMESTEP)
    steps = [int(row["t"]) for row in found]
    if steps != sorted(set(steps)) or len(steps) > MAX_TIMESTEPS:
        raise ValueError("its time steps do not follow each other")
    rows = [{**dict.fromkeys(PER_TIMESTEP), **row, **_intervals(row)} for row in found]
    return Accuracy(tuple(rows), rows[-1]["teacher_accuracy"])


def _intervals(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for what in ("at_t", "cumulative"):
        right, images = int(row[f"correct_{what}"]), int(row["images"])
        found[f"low_{what}"], found[f"high_{what}"] = proportion_interval(right, images)
        found[f"accuracy_{what}"] = right / images
    return found


def curves(run: Run) -> Curves:
    """Return metrics.csv. Raises RunError; ValueError where damaged."""
    rows = table(run, "metrics.csv", {"epoch": INTEGER})
    terms = [name for name in rows[0] if name not in NO_TERMS]
    if any(row["epoch"] is None for row in rows):
        raise ValueError("an epoch has no number")
    return Curves(tuple(thinned(rows, MOST_EPOCHS)), tuple(terms))


def energy(run: Run) -> Energy:
    """Return energy.csv. Raises RunError; ValueError where damaged."""
    found = table(run, "energy.csv", ENERGY)
    if len(found) > (MOST_LAYERS + 1) * (MAX_TIMESTEPS + 1):
        raise ValueError(f"it has {len(found):,} rows")
    rows = [_energy_row(row) for row in found]
    layers = [row for row in rows if row["layer"] != TOTAL]
    if len({row["layer"] for row in layers}) > MOST_LAYERS:
        raise ValueError(f"it has more than {MOST_LAYERS} layers")
    steps = [row["t"] for row in rows if row["layer"] == TOTAL and row["t"] != ALL]
    shown = {*thinned(steps, MOST_STEPS)}
    (total,) = [row for row in rows if row["layer"] == TOTAL and row["t"] == ALL]
    return Energy(
        profile=label(total["profile"]),
        layers=tuple(row for row in layers if row["t"] in shown),
        whole=tuple(row for row in layers if row["t"] == ALL),
        totals=tuple(row for row in rows if row["layer"] == TOTAL and row["t"] != ALL),
        total=total,
    )


def _energy_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with t as a number; raises ValueError where a number is none or below 0."""
    if any(row.get(name) is None or row[name] < 0 for name in PRICED):
        raise ValueError("a count or an energy is missing or negative")
    t = row["t"] if row["t"] == ALL else int(row["t"])
    return {**dict.fromkeys(ENERGY), **row, "layer": label(row["layer"]), "t": t}


def sidecar(run: Run) -> dict[str, Any]:
    """Return energy.json, {} where it is missing or damaged: it only adds to energy.csv."""
    try:
        return read_json(existing(run.folder, "energy.json"))
    except TserError:
        return {}


def teacher_energy(document: Mapping[str, Any]) -> float | None:
    """Return the teacher's energy in pJ, None where energy.json says nothing sound of it."""
    teacher = document.get("teacher")
    found = number(teacher.get("energy_pj")) if isinstance(teacher, dict) else None
    return found if found is not None and found > 0 else None


def number(value: Any) -> float | int | None:
    """Return a finite number from a JSON file, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def early_exit(run: Run) -> tuple[dict[str, Any], ...]:
    """Return the rows of early_exit.csv by confidence, () where there is no sound one."""
    found = part("early_exit.csv", lambda: table(run, "early_exit.csv", early_exit_schema(0)))
    rows = [] if isinstance(found, Missing) else found
    needed = ("threshold", "accuracy", "energy_pj", "mean_steps")
    sound = [row for row in rows if all(number(row.get(key)) is not None for key in needed)]
    return tuple(row for row in sound if row.get("criterion") == "confidence")
