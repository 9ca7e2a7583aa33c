"""What the files of a run folder say, for a report: each part by itself, or why it is missing.

The folder may come from anybody: nothing in it is run, and a damaged file costs its own part alone.

How a run was made, for a report: its settings, environment and commands, as its folder says.

Which test images a network took for what, from the classes that it answered.

What the tables of an ablation say, for a report.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tser_cli.base.errors import RunError, TserError, cut, visible
from tser_cli.base.files import is_file, read_json
from tser_cli.engine.page.values import (
    AblationReport,
    Accuracy,
    CellReport,
    Curves,
    Energy,
    Missing,
    Mistakes,
    Setting,
)
from tser_cli.engine.runs import record
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.record import with_result
from tser_cli.report.ablation_figures import (
    AT_T,
    CellRuns,
    baseline_of,
    cells_of,
    differences,
    mean,
)
from tser_cli.report.csv_files import (
    ALL,
    ENERGY,
    INTEGER,
    PER_TIMESTEP,
    PROVENANCE,
    STATISTICS,
    TOTAL,
    Schema,
    ablation_schema,
    axes_of,
    early_exit_schema,
    read_ablation,
    read_summary,
    read_table,
)
from tser_cli.report.predictions import PREDICTIONS, Predictions, read_predictions
from tser_cli.report.statistics import interval, proportion_interval
from tser_cli.settings.config import keys, short_name

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


MOST_LISTED = 200  # entries of environment.json


def stated_settings(run: Run) -> dict[str, Any]:
    """Return config.toml by dotted key, as it stands. Raises ConfigError, RunError."""
    existing(run.folder, "config.toml")
    return record.stated_settings(run.folder)


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
    known, teacher = with_result(run.status()), found.get("teacher")
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


MOST_DRAWN = 30  # classes of a matrix
MOST_LISTED_CLASSES = 60  # rows of the table of classes
MOST_CLASSES = 2**12  # the matrix would take gigabytes
MOST_PAIRS = 20


def predictions(run: Run) -> Predictions:
    """Return predictions.npz. Raises RunError."""
    found = read_predictions(existing(run.folder, PREDICTIONS))
    assert found is not None, "it exists"
    if not len(found.labels_I):
        raise RunError(f"{PREDICTIONS} holds no images")
    return found


def mistakes(found: Predictions, names: Sequence[str]) -> Mistakes:
    """Return what was taken for what; `names` are the classes', which else go by their number.

    Raises ValueError for more than 4,096 classes.
    """
    largest = max(int(found.labels_I.max()), int(found.cumulative_IT.max()), len(names) - 1)
    if largest >= MOST_CLASSES:
        raise ValueError(f"it has more than {MOST_CLASSES:,} classes")
    classes = class_names(names, largest + 1)
    confusion_KK = count_pairs(found, len(classes))
    steps = thinned(range(found.at_t_IT.shape[1]), MOST_STEPS)
    images_K = confusion_KK.sum(1)
    shares_K = 1 - confusion_KK.diagonal() / np.maximum(images_K, 1)
    seen = [int(k) for k in np.argsort(-shares_K, kind="stable") if images_K[k]]
    return Mistakes(
        classes=tuple(classes),
        confusion_KK=_drawn(confusion_KK),
        pairs=tuple(_pairs(confusion_KK, classes)),
        by_class=tuple(
            _of_class(k, classes, found, confusion_KK[k], steps)
            for k in sorted(seen[:MOST_LISTED_CLASSES])
        ),
        steps=tuple(step + 1 for step in steps),
        left_out=max(0, len(seen) - MOST_LISTED_CLASSES),
    )


def class_names(names: Sequence[str], count: int) -> list[str]:
    """Return a name for each class, each another one; the number where there is no name."""
    shown = [label(names[k]) if k < len(names) else str(k) for k in range(count)]
    often = Counter(shown)
    return [name if often[name] == 1 else f"{name} ({k})" for k, name in enumerate(shown)]


def count_pairs(found: Predictions, classes: int) -> NDArray[np.int64]:
    """Return how many images of each class were taken for each class after all steps: [K, K]."""
    true_I, taken_I = found.labels_I.astype(np.int64), found.cumulative_IT[:, -1].astype(np.int64)
    flat = np.bincount(true_I * classes + taken_I, minlength=classes**2)
    return flat.astype(np.int64).reshape(classes, classes)


def _drawn(confusion_KK: NDArray[np.int64]) -> tuple[tuple[int, ...], ...] | None:
    if len(confusion_KK) > MOST_DRAWN:
        return None
    return tuple(tuple(map(int, row)) for row in confusion_KK.tolist())


def _of_class(
    k: int,
    classes: Sequence[str],
    found: Predictions,
    taken_K: NDArray[np.int64],
    steps: Sequence[int],
) -> dict[str, Any]:
    mine_I = found.labels_I == k
    others_K = np.where(np.arange(len(classes)) == k, 0, taken_K)
    return {
        "name": classes[k],
        "images": int(mine_I.sum()),
        "wrong": [int((found.at_t_IT[mine_I, step] != k).sum()) for step in steps],
        "wrong_in_the_end": int(others_K.sum()),
        "taken_for": classes[int(others_K.argmax())] if others_K.any() else "",
    }


def _pairs(confusion_KK: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    wrong_KK = confusion_KK.copy()
    np.fill_diagonal(wrong_KK, 0)
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(place), len(classes)) for place in order]
    return [
        {
            "true": classes[true],
            "predicted": classes[taken],
            "images": int(wrong_KK[true, taken]),
            "share": int(wrong_KK[true, taken]) / int(confusion_KK[true].sum()),
        }
        for true, taken in places
        if wrong_KK[true, taken]
    ]


TABLES = ("ablation.csv", "summary.csv")
KNOWN = ablation_schema([], 0)
MOST_CELLS = 100
MOST_RUNS = 2000


def is_ablation(folder: Path) -> bool:
    """Return whether a folder is that of an ablation, finished or not."""
    return any((folder / name).is_file() for name in (*TABLES, "plan.json"))


def ablation_report(folder: Path) -> AblationReport:
    """Return what the tables in `folder` say; what is missing or damaged is said in words."""
    found = part("ablation.csv or summary.csv", lambda: _report(folder))
    if isinstance(found, Missing):
        return AblationReport(label(folder.name), str(folder), {}, "", (), (), found, (), {}, ())
    return found


def _report(folder: Path) -> AblationReport:
    runs, summary, axes = _read(folder)
    return AblationReport(
        name=label(folder.name),
        folder=str(folder),
        axes={label(axis): label(name) for axis, name in axes.items()},
        measure=label(str(summary["measure"].iloc[0])),
        said=tuple(_said(runs)),
        teachers=tuple(sorted(set(runs["teacher_accuracy"].dropna().tolist()))),
        cells=_cells(runs, summary, axes),
        runs=tuple({**dict.fromkeys(KNOWN), **row} for row in plain_rows(runs[:MOST_RUNS])),
        shared=_shared(runs),
        commands=_commands(folder, runs),
    )


def _read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Return both tables and the short names of the varied settings. Raises ValueError."""
    summary = read_summary(existing(folder, "summary.csv"))
    axes = {axis: _short(axis) for axis in axes_of(summary)}
    runs = read_ablation(existing(folder, "ablation.csv"), list(axes))
    if not len(summary) or not len(runs):
        raise ValueError("it has no rows")
    if len(summary) > MOST_CELLS:
        raise ValueError(f"it has more than {MOST_CELLS} cells")
    return runs, summary, axes


def _short(axis: str) -> str:
    try:
        return short_name(axis)
    except TserError:
        return axis


def _cells(
    runs: pd.DataFrame, summary: pd.DataFrame, axes: Mapping[str, str]
) -> tuple[CellReport, ...]:
    """Return a report a row of summary.csv, with the finished runs of its cell."""
    found = cells_of(runs, axes)
    measure = str(summary["measure"].iloc[0])
    paired = differences(found, measure, baseline_of(summary))
    by_key = {cell.key: (cell, values) for cell, values in zip(found, paired, strict=True)}
    return tuple(
        _cell(row, *by_key[key], measure)
        for row in ({**dict.fromkeys(STATISTICS), **found} for found in plain_rows(summary))
        if (key := tuple(str(row[axis]) for axis in axes)) in by_key
    )


def _cell(
    row: Mapping[str, Any], cell: CellRuns, paired: Sequence[float], measure: str
) -> CellReport:
    values = {
        "accuracy": cell.percent(measure),
        "difference": list(paired),
        "energy_pj": [float(value) for value in cell.runs["energy_pj"].dropna()],
    }
    steps = sum(str(name).startswith(AT_T) for name in cell.runs)
    return CellReport(
        label=label(cell.label),
        row=row,
        accuracy=tuple(values["accuracy"]),
        difference=tuple(values["difference"]),
        energy_pj=tuple(values["energy_pj"]),
        intervals={name: interval(found) for name, found in values.items()},
        at_t=tuple(_at_t(cell, t) for t in range(1, steps + 1) if cell.percent(f"{AT_T}{t}")),
    )


def _at_t(cell: CellRuns, t: int) -> dict[str, Any]:
    found = cell.percent(f"{AT_T}{t}")
    reach = interval(found) or (None, None)
    return {"t": t, "mean": mean(found), "low": reach[0], "high": reach[1]}


def _said(runs: pd.DataFrame) -> list[str]:
    states = runs["state"].value_counts()
    missing = [f"{count} {label(state)}" for state, count in states.items() if state != "finished"]
    finished = int(states.get("finished", 0))
    return (
        [f"{finished} of {len(runs)} runs are finished ({', '.join(missing)})"] if missing else []
    )


def _shared(runs: pd.DataFrame) -> dict[str, str]:
    """Return where the runs come from, as far as all finished ones agree."""
    finished = runs[runs["state"] == "finished"]
    known = {name: finished[name].dropna().unique() for name in PROVENANCE if name in finished}
    return {
        name: cut(visible(str(values[0])), 600)
        for name, values in known.items()
        if len(values) == 1
    }


def _commands(folder: Path, runs: pd.DataFrame) -> tuple[str, ...]:
    """Return the command that repeats one cell: each keeps its settings, the ablation does not."""
    cells = [str(name) for name in runs["folder"].dropna()]
    kept = [folder / name / "cell.toml" for name in cells[:1]]
    return tuple(f"tser distill --recipe {shlex.quote(str(path))}" for path in kept)
