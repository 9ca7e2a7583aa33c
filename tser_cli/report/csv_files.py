"""CSV tables: the columns of each and what they hold. Pandas reads them, and is slow to import.

A schema maps a column to its kind; the order of its columns is the order in the file. Numbers are
written so that they come back as the same bits. Files are written whole.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tser_cli.base.files import read_regular, write_text

if TYPE_CHECKING:
    import pandas as pd


ALL = "all"  # column t: the sum over all time steps
MOST_BYTES, MOST_FIELDS = 2**26, 2**20  # of a file: pandas takes some 250 bytes a field
TOTAL = "TOTAL"  # column layer: the sum over all layers

# column point of frontier.csv
ALL_STEPS, EARLY_EXIT = "all_steps", "early_exit"
ANN, ANN_INT8, TEACHER = "ann", "ann_int8", "teacher"


Schema = Mapping[str, str]
Rows = Sequence[Mapping[str, Any]]
# pandas types: Int64 holds integers and empty fields; a plain int64 column with one empty field
# would turn into floats.
TEXT, INTEGER, NUMBER = "object", "Int64", "float64"


def _columns(kind: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, kind)


# Counts stand beside the fractions: intervals are made of them, and they are exact.
PER_TIMESTEP: Schema = {
    **_columns(TEXT, "run", "dataset", "split", "method", "teacher", "student"),
    **_columns(INTEGER, "timesteps", "t"),
    **_columns(NUMBER, "accuracy_at_t", "accuracy_cumulative"),
    **_columns(INTEGER, "correct_at_t", "correct_cumulative", "images"),
    **_columns(NUMBER, "loss_at_t", "entropy_at_t", "confidence_at_t", "teacher_accuracy"),
    **_columns(NUMBER, "chance", "p_chance", "p_teacher"),
    **_columns(NUMBER, "loss_at_t_low", "loss_at_t_high"),
    **_columns(NUMBER, "loss_cumulative", "loss_cumulative_low", "loss_cumulative_high"),
    **_columns(NUMBER, "ece_at_t", "ece_at_t_low", "ece_at_t_high"),
    **_columns(NUMBER, "ece_cumulative", "ece_cumulative_low", "ece_cumulative_high"),
    **_columns(NUMBER, "agreement_teacher_right", "agreement_teacher_wrong"),
}
# of each step, in ablation.csv and steps.csv: its column there, and in per_timestep.csv
STEP_MEASURES = {
    "accuracy_at": "accuracy_at_t",
    "accuracy_cumulative": "accuracy_cumulative",
    "loss_at": "loss_at_t",
    "loss_cumulative": "loss_cumulative",
    "ece_at": "ece_at_t",
    "ece_cumulative": "ece_cumulative",
    "agreement_teacher_right": "agreement_teacher_right",
    "agreement_teacher_wrong": "agreement_teacher_wrong",
}
# t is text: it may be "all"
ENERGY: Schema = {
    **_columns(TEXT, "run", "dataset", "profile", "layer", "type", "input_kind", "op", "t"),
    **_columns(INTEGER, "timesteps", "images"),
    # means per image, and so floats even where operations are counted
    **_columns(NUMBER, "neurons_in", "nonzero_in", "firing_rate", "sop_events", "sop_value"),
    **_columns(NUMBER, "macs", "sop_formula", "neuron_updates", "energy_pj"),
    **_columns(NUMBER, "energy_formula_pj", "ann_macs", "ann_energy_pj", "ratio_snn_ann"),
    **_columns(NUMBER, "ann_frames_macs", "ann_frames_energy_pj"),
}
STEPWISE = ("firing_rate", "sop_value", "macs", "energy_pj")  # columns of --wide, one a step
# The same, each operation in one row alone; the ANN has no steps to share its columns among.
ENERGY_LONG: Schema = {
    name: kind
    for name, kind in ENERGY.items()
    if not name.startswith("ann_") and name != "ratio_snn_ann"
}
CONVENTIONS: Schema = {
    **_columns(TEXT, "convention"),
    **_columns(NUMBER, "macs", "acs", "energy_pj", "ratio_to_exact"),
    **_columns(TEXT, "differs_by"),
}
PER_IMAGE: Schema = {
    **_columns(TEXT, "run", "dataset", "profile"),
    **_columns(INTEGER, "image", "label", "t", "correct_at_t", "correct_cumulative"),
    **_columns(NUMBER, "energy_pj"),
}
TSNE: Schema = {
    **_columns(TEXT, "network"),
    **_columns(INTEGER, "image", "label"),
    **_columns(NUMBER, "x", "y"),
}
STATISTICS: Schema = {
    **_columns(TEXT, "measure"),
    **_columns(INTEGER, "n"),
    **_columns(NUMBER, "accuracy_mean", "accuracy_std"),
    **_columns(INTEGER, "baseline"),
    **_columns(NUMBER, "difference_mean", "difference_low", "difference_high"),
    **_columns(INTEGER, "pairs", "resolved"),
    **_columns(NUMBER, "p_value", "p_holm"),
    **_columns(INTEGER, "resolved_holm"),
    **_columns(NUMBER, "two_way_low", "two_way_high", "p_mcnemar"),
}
EXIT_STATISTICS: Schema = {
    **_columns(INTEGER, "n", "missed"),
    **_columns(NUMBER, "energy_mean_pj", "energy_std_pj", "latency_mean_ms"),
    **_columns(INTEGER, "baseline", "pairs"),
    **_columns(NUMBER, "energy_difference_pj"),
    **_columns(NUMBER, "energy_difference_low_pj", "energy_difference_high_pj"),
    **_columns(INTEGER, "resolved"),
    **_columns(NUMBER, "p_value", "p_holm"),
    **_columns(INTEGER, "resolved_holm"),
    **_columns(NUMBER, "accuracy_mean", "accuracy_std"),
    **_columns(NUMBER, "difference_mean", "difference_low", "difference_high"),
}
FRONTIER: Schema = {
    **_columns(TEXT, "point"),
    **_columns(NUMBER, "threshold"),
    **_columns(INTEGER, "n"),
    **_columns(NUMBER, "energy_pj", "energy_low_pj", "energy_high_pj"),
    **_columns(NUMBER, "accuracy", "accuracy_low", "accuracy_high"),
}
# Where a run of an ablation comes from: what a repetition must have in common with it.
PROVENANCE: Schema = {
    **_columns(TEXT, "commit", "torch"),
    **_columns(INTEGER, "threads"),
    **_columns(NUMBER, "temperature"),
    **_columns(TEXT, "weights", "settings", "events"),
}


def early_exit_schema(timesteps: int) -> Schema:
    """early_exit.csv: a row a threshold, with the share of images that stop at each step."""
    return {
        **_columns(TEXT, "run", "dataset", "profile", "criterion"),
        **_columns(NUMBER, "threshold"),
        **_columns(INTEGER, "timesteps", "images", "correct"),
        **_columns(NUMBER, "accuracy", "accuracy_full", "mean_steps"),
        **_columns(NUMBER, *(f"share_exit_{t}" for t in range(1, timesteps + 1))),
        **_columns(NUMBER, "energy_pj", "energy_full_pj", "latency_ms", "latency_full_ms"),
        **_columns(INTEGER, "differing_images"),
        **_columns(TEXT, "chosen_on"),
        **_columns(NUMBER, "budget_pj"),
        **_columns(INTEGER, "kept"),
    }


def ablation_exit_schema(axes: Sequence[str], timesteps: int) -> Schema:
    """early_exit.csv of an ablation: a row a run, at the accuracy of its baseline."""
    return {
        **_columns(TEXT, *axes),
        **_columns(INTEGER, "seed"),
        **_columns(TEXT, "chosen_on"),
        **_columns(NUMBER, "accuracy_margin", "target_accuracy", "threshold"),
        **_columns(NUMBER, "accuracy", "energy_pj", "accuracy_full", "energy_full_pj"),
        **_columns(NUMBER, "latency_ms", "latency_full_ms"),
        **_columns(NUMBER, "mean_steps", *(f"share_exit_{t}" for t in range(1, timesteps + 1))),
    }


def prediction_schema(timesteps: int) -> Schema:
    """predictions.csv: a row an image; `error` says why one could not be read."""
    return {
        **_columns(TEXT, "image", "class"),
        **_columns(NUMBER, *(f"confidence_{t}" for t in range(1, timesteps + 1))),
        **_columns(INTEGER, "stop_t", "sop_value", "macs"),
        **_columns(TEXT, "error"),
    }


def by_cell(axes: Sequence[str], schema: Schema) -> Schema:
    """Return a schema whose rows stand for cells of an ablation: the varied settings come first.

    They are empty where a point of frontier.csv belongs to all cells.
    """
    return {**_columns(TEXT, *axes), **schema}


def ablation_schema(axes: Sequence[str], timesteps: int) -> Schema:
    """ablation.csv: a row a run; `axes` are the varied settings, `timesteps` the largest T."""
    steps = range(1, timesteps + 1)
    return {
        **_columns(TEXT, *axes),
        **_columns(INTEGER, "seed"),
        **_columns(TEXT, "state"),
        **_columns(NUMBER, "accuracy", "teacher_accuracy", "best_validation_accuracy"),
        **_columns(NUMBER, "teacher_train_accuracy"),
        **_columns(NUMBER, *(f"{name}_{t}" for name in STEP_MEASURES for t in steps)),
        **_columns(NUMBER, "energy_pj", "seconds"),
        **_columns(TEXT, "folder"),
        **PROVENANCE,
    }


def write_csv(path: Path, rows: Rows, schema: Schema) -> None:
    """Write `rows` with exactly the columns of `schema`; None becomes an empty field.

    Raises RunError where the file can't be written, ValueError for a column that is not in
    `schema`.
    """
    # a misspelled column would else be left out without a word
    surplus = dict.fromkeys(name for row in rows for name in row if name not in schema)
    if surplus:
        raise ValueError(f"{path.name} has no column {', '.join(surplus)}")
    # not the system's line ends: the same rows give the same bytes everywhere
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(schema)
    # str() writes a float with the fewest digits that give the same bits again, and NaN as "nan": a
    # number that went wrong, where an empty field is one that is not there
    writer.writerows(
        ["" if row.get(name) is None else str(row[name]) for name in schema] for row in rows
    )
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as they are written: texts by column, "" for empty fields."""
    texts = _texts(path)
    names = [str(name) for name in texts]
    return [dict(zip(names, fields, strict=True)) for fields in texts.to_numpy().tolist()]


def read_table(path: Path, schema: Schema, others: str = NUMBER) -> pd.DataFrame:
    """Return a CSV file as a table whose columns have the kinds of `schema`.

    Columns of the schema that the file lacks are left out; columns that are not in it have the kind
    `others`. Empty fields are missing values, in texts too.
    """
    import pandas as pd

    texts = _texts(path)
    kinds = {str(name): schema.get(str(name), others) for name in texts}
    return pd.DataFrame({name: _typed(texts[name].tolist(), kind) for name, kind in kinds.items()})


def _texts(path: Path) -> pd.DataFrame:
    import pandas as pd

    content = read_regular(path, MOST_BYTES)
    if content.count(b",") + content.count(b"\n") > MOST_FIELDS:
        raise ValueError(f"it has more than {MOST_FIELDS:,} fields")
    # every field as it stands: a class or a folder may be called "NA"
    return pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)


def _typed(fields: list[str], kind: str) -> pd.Series:
    import pandas as pd

    # Python's own float: that of pandas may differ in the last bit
    convert = {TEXT: str, INTEGER: int, NUMBER: float}[kind]
    return pd.Series([None if field == "" else convert(field) for field in fields], dtype=kind)


def read_ablation(path: Path, axes: Sequence[str]) -> pd.DataFrame:
    """Return ablation.csv; the varied settings stay texts, as they were written."""
    # as many columns as the largest T of the cells, which only the header tells
    steps = sum(str(name).startswith("accuracy_at_") for name in _texts(path))
    return read_table(path, ablation_schema(axes, steps), others=TEXT)


def read_summary(path: Path) -> pd.DataFrame:
    """Return summary.csv; the varied settings are texts."""
    return read_table(path, STATISTICS, others=TEXT)


def axes_of(summary: pd.DataFrame) -> list[str]:
    """Return the varied settings of a table from summary.csv: the columns before the statistics."""
    # any setting may be varied, a plug-in's too: only the columns after them are known
    names = list(map(str, summary.columns))
    return names[: names.index("measure")]


def metrics_csv(path: Path, rows: Rows) -> None:
    """Write metrics.csv: one row an epoch; the columns are those of the first row.

    Which there are depends on the terms of the method's loss.
    """
    columns = rows[0] if rows else ["epoch"]
    write_csv(path, rows, {name: INTEGER if name == "epoch" else NUMBER for name in columns})


def per_timestep_csv(path: Path, rows: Rows, labels: Mapping[str, str | None]) -> None:
    """Write per_timestep.csv: one row a time step; `labels` are the columns that name the run."""
    write_csv(path, [{**labels, **row} for row in rows], PER_TIMESTEP)


SUMS, LONG, WIDE = "sums", "long", "wide"


def write_energy_csv(path: Path, rows: Rows, form: str) -> None:
    """Write the rows of energy.csv in one of three forms. Raises RunError.

    `sums`: as they are, with a row for each layer over all steps and the layer TOTAL. `long`: a row
    a layer and step. `wide`: a row a layer, its sums over t, then a column a step of each of
    STEPWISE. In the last two each operation is in one row, so that a column's sum is the network's.
    """
    if form == SUMS:
        return write_csv(path, rows, ENERGY)
    layers = [row for row in rows if row["layer"] != TOTAL]
    steps = [row for row in layers if row["t"] != ALL]
    if form == LONG:
        stepped = [{name: row[name] for name in ENERGY_LONG} for row in steps]
        return write_csv(path, stepped, ENERGY_LONG)
    assert form == WIDE
    without_t = {name: kind for name, kind in ENERGY.items() if name != "t"}
    times = range(1, rows[0]["timesteps"] + 1)
    per_step = _columns(NUMBER, *(f"{name}_{t}" for name in STEPWISE for t in times))
    by_layer = {
        row["layer"]: {name: row[name] for name in without_t} for row in layers if row["t"] == ALL
    }
    for row in steps:
        by_layer[row["layer"]] |= {f"{name}_{row['t']}": row[name] for name in STEPWISE}
    return write_csv(path, list(by_layer.values()), {**without_t, **per_step})
