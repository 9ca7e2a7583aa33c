"""What the files of a folder say, for a report: each part by itself, or why it is missing.

A folder may come from anybody: nothing in it is run, and a damaged file costs its own part alone.
First the tables of a run, then how it was made, then what was taken for what, then ablations.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from tser_cli.base.errors import RunError, TserError, cut, visible
from tser_cli.base.files import is_file, read_json
from tser_cli.energy.joules import FRAMES, INT8, MEMORY, SAME, SKIPPING
from tser_cli.engine.page import values
from tser_cli.engine.page.values import Missing
from tser_cli.engine.runs import record
from tser_cli.engine.runs.folder import Run
from tser_cli.report import ablation_figures, csv_files
from tser_cli.report.comparison import statistics_in
from tser_cli.report.figures import LayerEnergy
from tser_cli.report.predictions import PREDICTIONS, Predictions, read_predictions
from tser_cli.report.words import simulated
from tser_cli.settings import recipe
from tser_cli.settings.config import keys
from tser_cli.settings.names import short_name

Value = TypeVar("Value")
# What a file of the right kind with wrong content can make its reader raise.
DAMAGED = (ValueError, KeyError, TypeError, ArithmeticError, LookupError, OSError, MemoryError)
# Bounds: what comes from a stranger must fill neither memory nor the page.
MOST_BYTES = 2**26  # of a table
MAX_TIMESTEPS = 1024  # that tser evaluate measures
MOST_STEPS = 16  # time steps that the parts with a row or mark for each step show
MOST_EPOCHS = 1000
MOST_LAYERS = 300
LABEL = 80  # characters of a name
PRICED = ("firing_rate", "sop_value", "macs", "energy_pj", "ann_macs", "ann_energy_pj")
# columns of metrics.csv beside the terms of a loss, whose names are the method's own
NO_TERMS = {
    *("epoch", "lr", "train_accuracy", "teacher_train_accuracy", "validation_accuracy"),
    *("images_per_second", "seconds"),
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
        # an error may quote the file's content, which may be long
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


def table(run: Run, name: str, schema: csv_files.Schema) -> list[dict[str, Any]]:
    """Return the rows of a table; empty fields, NaN and infinities are None.

    Raises RunError where there is no file, ValueError where it is damaged or has no rows.
    """
    rows = plain_rows(csv_files.read_table(existing(run.folder, name), schema))
    if not rows:
        raise ValueError("it has no rows")
    return rows


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row a dict, of plain values; what is missing or not finite is None."""
    # pandas' own signs for what is missing are not None, and nothing can be formatted with them
    records = frame.to_dict("records")
    return [
        {str(key): value if isinstance(value, str) else number(value) for key, value in row.items()}
        for row in records
    ]


def number(value: Any) -> float | int | None:
    """Return a finite number from a file, None for anything else."""
    # True is an int to Python
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def thinned(rows: Sequence[Value], most: int) -> list[Value]:
    """Return at most `most` of the rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(n * (len(rows) - 1) / (most - 1))] for n in range(most)]


def accuracy(run: Run) -> values.Accuracy:
    """Return per_timestep.csv. Raises RunError; ValueError where damaged."""
    rows = table(run, "per_timestep.csv", csv_files.PER_TIMESTEP)
    steps = tuple(_step(row) for row in rows)
    times = [step.t for step in steps]
    if times != sorted(set(times)) or len(times) > MAX_TIMESTEPS:
        raise ValueError("its time steps do not follow each other")
    return values.Accuracy(steps, rows[-1].get("teacher_accuracy"), rows[-1])


def _step(row: Mapping[str, Any]) -> values.MeasuredStep:
    """Return a step; raises ValueError where more images are right than there are."""
    alone = (row.get(f"{name}_at_t") for name in ("loss", "entropy", "confidence"))
    right = (row["correct_at_t"], row["correct_cumulative"])
    if not 0 <= min(right) <= max(right) <= row["images"] or not row["images"]:
        raise ValueError(f"of {row['images']} images {right[0]} and {right[1]} are right")
    loss, entropy, confidence = alone
    return values.MeasuredStep(row["t"], row["images"], *right, loss, entropy, confidence)


def curves(run: Run) -> values.Curves:
    """Return metrics.csv. Raises RunError; ValueError where damaged."""
    rows = table(run, "metrics.csv", {"epoch": csv_files.INTEGER})
    if any(row["epoch"] is None for row in rows):
        raise ValueError("an epoch has no number")
    shown = thinned(rows, MOST_EPOCHS)  # more would be less than a pixel apart
    columns = {
        name: [(row["epoch"], row[name]) for row in shown if row[name] is not None]
        for name in rows[0]
        if name != "epoch"
    }
    return values.Curves(
        {name: series for name, series in columns.items() if series},
        tuple(name for name in columns if name not in NO_TERMS),
    )


def energy(run: Run) -> values.Energy:
    """Return energy.csv. Raises RunError; ValueError where damaged."""
    rows = table(run, "energy.csv", csv_files.ENERGY)
    if len(rows) > (MOST_LAYERS + 1) * (MAX_TIMESTEPS + 1):
        raise ValueError(f"it has {len(rows):,} rows")
    for row in rows:
        if any(row.get(name) is None or row[name] < 0 for name in PRICED):
            raise ValueError("a count or an energy is missing or negative")
        # a number that is text in the file, where it may be "all"
        row |= {
            "layer": label(row["layer"]),
            "t": row["t"] if row["t"] == csv_files.ALL else int(row["t"]),
        }
    layers = [row for row in rows if row["layer"] != csv_files.TOTAL]
    if len({row["layer"] for row in layers}) > MOST_LAYERS:
        raise ValueError(f"it has more than {MOST_LAYERS} layers")
    steps = [row for row in rows if row["layer"] == csv_files.TOTAL and row["t"] != csv_files.ALL]
    shown = {row["t"] for row in thinned(steps, MOST_STEPS)}
    # exactly one: with none or several this raises ValueError, and the table is damaged
    (total,) = [
        row for row in rows if row["layer"] == csv_files.TOTAL and row["t"] == csv_files.ALL
    ]
    return values.Energy(
        profile=label(total["profile"]),
        layers=tuple(LayerEnergy.of_row(row) for row in layers if row["t"] in shown),
        sums=tuple(
            values.LayerSums(
                layer=row["layer"],
                input_kind=label(row.get("input_kind") or ""),
                firing_rate=row["firing_rate"],
                accumulates=row["sop_value"],
                macs=row["macs"],
                energy_pj=row["energy_pj"],
                ann_energy_pj=row["ann_energy_pj"],
            )
            for row in layers
            if row["t"] == csv_files.ALL
        ),
        steps_pj=tuple(row["energy_pj"] for row in steps),
        energy_pj=total["energy_pj"],
        ann_energy_pj=total["ann_energy_pj"],
    )


# Under which assumption, which ANN stands beside the student: see `energy.joules.against_ann`.
ANNS = {
    SAME: "the ANN of the same shape",
    FRAMES: "that ANN, on each frame",
    SKIPPING: "that ANN, skipping its zeros",
    MEMORY: "that ANN, with memory traffic",
    INT8: "that ANN in 8-bit integers",
}
Assumptions = dict[str, dict[str, float]]  # the energies of student and ANN by assumption


@dataclass(frozen=True)
class Sidecar:
    """What energy.json adds to energy.csv, as far as it is sound."""

    teacher: str = ""
    teacher_pj: float | None = None
    assumptions: Assumptions = field(default_factory=dict)


def sidecar(run: Run) -> Sidecar:
    """Return energy.json; it only adds to energy.csv, so that a damaged one says nothing."""

    def sound(name: str, case: Any) -> bool:
        needed = ("snn_pj", "ann_pj", *(["skipped"] if name == SKIPPING else []))
        return name in ANNS and isinstance(case, dict) and all(positive(case, k) for k in needed)

    def positive(case: Mapping[str, Any], key: str) -> bool:
        found = number(case.get(key))
        return found is not None and found > 0

    try:
        document = read_json(existing(run.folder, "energy.json"))
    except TserError:
        return Sidecar()
    parts = (document.get("teacher"), document.get("against_ann"))
    teacher, against = (found if isinstance(found, dict) else {} for found in parts)
    found = Sidecar()
    if positive(teacher, "energy_pj"):
        found = Sidecar(label(teacher.get("name")), teacher["energy_pj"])
    stated = against.get("assumptions")
    # with one case that makes no sense the others are not believed either
    if isinstance(stated, dict) and SAME in stated and all(sound(*item) for item in stated.items()):
        return replace(found, assumptions=stated)
    return found


def early_exit(run: Run) -> tuple[values.ExitPoint, ...]:
    """Return early_exit.csv by confidence, () where there is no sound row."""
    found = part(
        "early_exit.csv", lambda: table(run, "early_exit.csv", csv_files.early_exit_schema(0))
    )
    # the shares of images that stop at each step, a column each, are not shown
    needed = ("threshold", "accuracy", "energy_pj", "mean_steps")
    return tuple(
        exit_point(row)
        for row in ([] if isinstance(found, Missing) else found)
        if row.get("criterion") == "confidence"
        and all(number(row.get(key)) is not None for key in needed)
    )


def exit_point(row: Mapping[str, Any]) -> values.ExitPoint:
    """Return what a row of early_exit.csv says."""
    name = f"early exit, confidence {row['threshold']:g}, {row['mean_steps']:.2f} steps"
    return values.ExitPoint(
        name, row["energy_pj"], row["accuracy"], row["threshold"], row["mean_steps"]
    )


MOST_LISTED = 200  # entries of environment.json


def stated_settings(run: Run) -> dict[str, Any]:
    """Return config.toml by dotted key, as it stands. Raises ConfigError, RunError."""
    # refused where it is a link or too large, before it is read
    existing(run.folder, "config.toml")
    return record.stated_settings(run.folder)


def settings(stated: Mapping[str, Any], kind: str) -> tuple[values.Setting, ...]:
    """Return the settings that are not those of the data set's recipe for this kind of run."""
    # a plug-in's settings have no default here, since none of its code is run
    usual = dict(keys())
    with suppress(TserError):  # a data set of a plug-in has no recipe that is known here
        for name in recipe.defaults(kind, [recipe.Layer("config.toml", dict(stated))]):
            usual |= recipe.read(name).values
    return tuple(
        values.Setting(label(key), _words(value), _words(usual[key]) if key in usual else None)
        for key, value in stated.items()
        # as words, in which 1 and 1.0, or a list and a tuple, are the same
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
    stated = [entry.get("command") for entry in listed if isinstance(entry, dict)]
    typed = [
        # the first word is the path of the program, which differs between machines
        cut(visible(shlex.join(["tser", *map(str, words[1:])])), 2000)
        for words in stated
        if isinstance(words, list) and words
    ]
    verb = "train-teacher" if run.kind == "teacher" else "distill"
    again = f"tser {verb} --recipe {shlex.quote(str(run.folder))} --resume never"
    # each once: a run that was resumed was begun by the same command several times
    return (*dict.fromkeys(typed), again)


def facts(run: Run, stated: Mapping[str, Any], found: Mapping[str, Any]) -> values.RunFacts:
    """Return what a run is, as it recorded it, else as its settings or environment.json say."""
    known, teacher = record.with_result(run.status()), found.get("teacher")
    stated_model = stated.get("model.student" if run.kind == "student" else "model.teacher")
    taught_by = teacher.get("model") if isinstance(teacher, dict) else None
    words = {
        "model": known.get("model") or stated_model or "network",
        "dataset": known.get("dataset") or stated.get("data.name") or run.folder.parent.name,
        "method": known.get("method") or stated.get("method.name") or "",
        "teacher": known.get("teacher") or taught_by or "",
        "seed": stated.get("training.seed", ""),
        "events": " ".join(simulated(str(known.get("events") or ""))),
        "finished": str(known.get("finished", ""))[:16].replace("T", " "),
        "device": found.get("device", ""),
    }
    return values.RunFacts(
        **{key: label(value) for key, value in words.items()},
        timesteps=number(known.get("timesteps") or stated.get("model.timesteps")),
        epochs=number(known.get("epoch")),
        seconds=number(known.get("seconds") or found.get("wall_seconds")),
        energy_pj=number(known.get("energy_pj")),
        energy_budget_pj=number(known.get("energy_budget_pj")),
    )


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


def mistakes(found: Predictions, names: Sequence[str]) -> values.Mistakes:
    """Return what was taken for what; `names` are the classes', which else go by their number.

    Raises ValueError for more than 4,096 classes.
    """
    # a network may answer with a class that no image has
    largest = max(int(found.labels_I.max()), int(found.cumulative_IT.max()), len(names) - 1)
    if largest >= MOST_CLASSES:
        raise ValueError(f"it has more than {MOST_CLASSES:,} classes")
    classes = class_names(names, largest + 1)
    # not as uint16, in which a class times the number of classes would overflow
    true_I, taken_I = found.labels_I.astype(np.int64), found.cumulative_IT[:, -1].astype(np.int64)
    flat = np.bincount(true_I * len(classes) + taken_I, minlength=len(classes) ** 2)
    confusion_KK = flat.astype(np.int64).reshape(len(classes), len(classes))
    wrong_KK = confusion_KK.copy()
    np.fill_diagonal(wrong_KK, 0)
    images_K, wrong_K = confusion_KK.sum(1), wrong_KK.sum(1)
    # those with the largest share of errors, in the order of classes
    order = np.argsort(confusion_KK.diagonal() / np.maximum(images_K, 1) - 1, kind="stable")
    seen = [int(k) for k in order if images_K[k]]
    steps = thinned(range(found.at_t_IT.shape[1]), MOST_STEPS)
    by_class = []
    for k in sorted(seen[:MOST_LISTED_CLASSES]):
        answers_IT = found.at_t_IT[found.labels_I == k]
        wrong = tuple(int((answers_IT[:, step] != k).sum()) for step in steps)
        taken_for = classes[int(wrong_KK[k].argmax())] if wrong_K[k] else ""
        row = values.ClassErrors(classes[k], int(images_K[k]), wrong, int(wrong_K[k]), taken_for)
        by_class.append(row)
    # stable: equal shares stay in the order of classes
    places = np.argsort(-wrong_KK, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [divmod(int(place), len(classes)) for place in places]
    return values.Mistakes(
        classes=tuple(classes),
        confusion_KK=tuple(map(tuple, confusion_KK.tolist()))
        if len(classes) <= MOST_DRAWN
        else None,
        pairs=tuple(
            values.Confusion(classes[true], classes[taken], images, images / int(images_K[true]))
            for true, taken in pairs
            if (images := int(wrong_KK[true, taken]))
        ),
        by_class=tuple(by_class),
        steps=tuple(step + 1 for step in steps),
        left_out=max(0, len(seen) - MOST_LISTED_CLASSES),
    )


def class_names(names: Sequence[str], count: int) -> list[str]:
    """Return a name for each class, each another one; the number where there is no name."""
    shown = [label(names[k]) if k < len(names) else str(k) for k in range(count)]
    # two classes of one name would else look like one
    often = Counter(shown)
    return [name if often[name] == 1 else f"{name} ({k})" for k, name in enumerate(shown)]


TABLES = ("ablation.csv", "summary.csv")
MOST_CELLS = 100
MOST_RUNS = 2000


def ablation_report(folder: Path) -> values.AblationReport:
    """Return what the tables in `folder` say; what is missing or damaged is said in words."""
    found = part("ablation.csv or summary.csv", lambda: _report(folder))
    if isinstance(found, Missing):
        return values.AblationReport(label(folder.name), str(folder), found)
    return found


def _report(folder: Path) -> values.AblationReport:
    """Return what both tables say. Raises TserError, or ValueError where they are damaged."""
    summary = csv_files.read_summary(existing(folder, "summary.csv"))
    names = {axis: label(_short(axis)) for axis in csv_files.axes_of(summary)}
    runs = csv_files.read_ablation(existing(folder, "ablation.csv"), list(names))
    if not len(summary) or not len(runs):
        raise ValueError("it has no rows")
    if len(summary) > MOST_CELLS:
        raise ValueError(f"it has more than {MOST_CELLS} cells")
    finished = runs[runs["state"] == "finished"]
    known = {
        name: finished[name].dropna().unique() for name in csv_files.PROVENANCE if name in finished
    }
    # the ablation has no command of its own that repeats it, but each cell keeps its settings
    kept = [folder / str(name) / "cell.toml" for name in runs["folder"].dropna()[:1]]
    states = runs["state"].value_counts()
    others = [f"{count} {label(state)}" for state, count in states.items() if state != "finished"]
    said = f"{len(finished)} of {len(runs)} runs are finished ({', '.join(others)})"
    events = label(", ".join(map(str, known.get("events", ()))))
    return values.AblationReport(
        name=label(folder.name),
        folder=str(folder),
        axes=tuple(names.values()),
        measure=label(str(summary["measure"].iloc[0])),
        said=(*simulated(events), *([said] if others else [])),
        teachers=tuple(sorted(set(runs["teacher_accuracy"].dropna().tolist()))),
        cells=_cells(runs, summary, names),
        runs=tuple(
            values.AblationRun(
                settings=tuple(str(row[axis]) for axis in names),
                seed=row["seed"],
                state=str(row["state"]),
                accuracy=row.get("accuracy"),
                teacher_accuracy=row.get("teacher_accuracy"),
                energy_pj=row.get("energy_pj"),
                seconds=row.get("seconds"),
                folder=str(row.get("folder") or ""),
            )
            for row in plain_rows(runs[:MOST_RUNS])
        ),
        shared={
            name: cut(visible(str(texts[0])), 600)
            for name, texts in known.items()
            if len(texts) == 1
        },
        commands=tuple(f"tser distill --recipe {shlex.quote(str(path))}" for path in kept),
        # drawn from the tables: the figures in somebody's folder may hold scripts
        drawings=ablation_figures.draw_tables(runs, summary, names),
    )


def _short(axis: str) -> str:
    try:
        return short_name(axis)
    # a setting of a plug-in, whose code is not run here, goes by its whole name
    except TserError:
        return axis


def _cells(
    runs: pd.DataFrame, summary: pd.DataFrame, names: Mapping[str, str]
) -> tuple[values.CellReport, ...]:
    """Return a report for each row of summary.csv whose cell has a finished run."""
    by_key = {cell.key: cell for cell in ablation_figures.cells_of(runs, names)}
    reports = []
    for found in plain_rows(summary):
        key = tuple(str(found[axis]) for axis in names)
        if key in by_key:
            spent = by_key[key].energies_pj
            energy_pj = sum(spent) / len(spent) if spent else None
            name = label(by_key[key].label)
            reports.append(values.CellReport(name, statistics_in(found, names), energy_pj))
    return tuple(reports)
