"""The folder of one cell of an ablation: its settings, its run, and what came out of that."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import tomli_w

from tser_cli.csv_words import ALL, TOTAL
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.runs.find_runs import all_runs, newest_finished
from tser_cli.engine.runs.result import RESULT, read_result, recorded
from tser_cli.engine.runs.run_folder import Run
from tser_cli.errors import RunError, warn_once
from tser_cli.files import make_folder, write_text
from tser_cli.report.csv_files import ENERGY, INTEGER, PER_TIMESTEP, read_table

SETTINGS = "cell.toml"
LOG = "cell.log"


def write_settings(cell: Cell, folder: Path) -> Path:
    """Write all settings of a cell into its folder, where it reads them; return that folder.

    Paths are written whole, so that the cell may run from another working directory.
    """
    home, config = cell_folder(cell, folder).resolve(), cell.config
    if config.data.dir:
        config = config.updated({"data.dir": str(Path(config.data.dir).expanduser().resolve())})
    make_folder(home)
    write_text(home / SETTINGS, tomli_w.dumps(config.model_dump(mode="json")))
    return home


def arguments(home: Path) -> list[str]:
    """Return the `tser` command line of the cell in `home`: it goes on where it was stopped."""
    return [
        "distill",
        *("--recipe", str(home / SETTINGS)),
        *("--runs-dir", str(home)),
        *("--resume", "auto"),
    ]


def cell_name(cell: Cell) -> str:
    """Return a name such as `method=kd_temperature=4_s0`.

    Characters that a file name may not have are replaced, and a checksum is added.
    """
    name = f"{cell.label.replace(', ', '_')}_s{cell.seed}"
    safe = re.sub(r"[^\w.=+-]", "-", name, flags=re.ASCII)[:200]
    return safe if safe == name else f"{safe}-{zlib.crc32(name.encode()):08x}"


def cell_folder(cell: Cell, folder: Path) -> Path:
    """Return where a cell's run lies, by its varied settings and seed."""
    return folder / "cells" / cell_name(cell)


def find_cell(cell: Cell, folder: Path) -> Run | None:
    """Return the finished run of a cell, None where there is none yet.

    One whose result can't be read is named in a warning and is as good as none: it is trained
    again.
    """
    run = newest_finished(cell_folder(cell, folder), "student")
    try:
        if run is not None:
            result_of(run)
            run.environment()
    except RunError as error:
        warn_once(f"{cell.title} counts as not trained: {error}")
        return None
    return run


def result_row(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the columns of ablation.csv that a cell's run fills, the varied settings aside.

    `folder` is the ablation's, and the column of that name is relative to it.
    """
    row = {"seed": cell.seed, "state": "missing", "folder": f"cells/{cell_name(cell)}"}
    run = find_cell(cell, folder)
    if run is not None:
        return {**row, "state": "finished", **result_of(run)}
    begun = next(all_runs(cell_folder(cell, folder), "student"), None)
    if begun is None:
        return row
    state = begun.status().get("state")
    return {**row, "state": "damaged" if state == "finished" else state}


def result_of(run: Run) -> dict[str, Any]:
    """Return what came out of a finished run. `seconds` are of training, in all its parts.

    Raises RunError where that can't be read, or is none: an accuracy that is no fraction.
    """
    recorded_there = RESULT in run.status()
    try:
        row = _result_as_recorded(run) if recorded_there else _result_from_tables(run)
        accuracies = [v for k, v in row.items() if "accuracy" in k and v is not None]
        if row["accuracy"] is None or not all(0.0 <= value <= 1.0 for value in accuracies):
            raise ValueError("an accuracy is no fraction")
    except (ArithmeticError, KeyError, OSError, TypeError, ValueError) as error:
        raise RunError(f"the result of {run.folder} is damaged ({error})") from error
    return row


def _result_as_recorded(run: Run) -> dict[str, Any]:
    result = read_result(run)
    steps = result.per_timestep
    if [row["t"] for row in steps] != list(range(1, result.timesteps + 1)):
        raise ValueError("its time steps do not follow each other")
    return {
        "accuracy": result.accuracy,
        "teacher_accuracy": result.teacher_accuracy,
        "best_validation_accuracy": result.best_validation_accuracy,
        **{f"accuracy_at_{row['t']}": row["accuracy_at_t"] for row in steps},
        **{f"accuracy_cumulative_{row['t']}": row["accuracy_cumulative"] for row in steps},
        "energy_pj": result.energy_pj,
        "seconds": result.seconds,
    }


def _result_from_tables(run: Run) -> dict[str, Any]:
    """Return the same for a run from before results were recorded, out of its CSV files."""
    known = recorded(run)
    epochs = read_table(run.folder / "metrics.csv", {"epoch": INTEGER})
    steps = read_table(run.folder / "per_timestep.csv", PER_TIMESTEP).set_index("t")
    energy = read_table(run.folder / "energy.csv", ENERGY).set_index(["layer", "t"])
    held_out = epochs["validation_accuracy"].dropna()
    return {
        "accuracy": known.get("accuracy"),
        "teacher_accuracy": known.get("teacher_accuracy"),
        "best_validation_accuracy": float(held_out.max()) if len(held_out) else None,
        **{f"accuracy_at_{t}": value for t, value in steps["accuracy_at_t"].items()},
        **{f"accuracy_cumulative_{t}": value for t, value in steps["accuracy_cumulative"].items()},
        "energy_pj": energy["energy_pj"].to_dict()[TOTAL, ALL],
        "seconds": sum(epochs["seconds"].tolist()),
    }
