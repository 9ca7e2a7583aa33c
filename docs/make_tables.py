"""Write the tables of README.md and docs/*.md from the CSVs that they show.

    python docs/make_tables.py           # brings the tables up to date
    python docs/make_tables.py --check   # exit code 1 where one is not

A table stands between `<!-- table: FOLDER/NAME.csv means -->` and `<!-- end of table -->`; its
figures come from NAME.csv (a row a run), its axes, baseline and measure from NAME_summary.csv.
`means` shows what each cell reached, `differences` how far it is from its baseline at each step,
`early_exit` the energy at the baseline's accuracy, from NAME_early_exit.csv; `alternatives` what
the runs of NAME_alternatives.csv reached, against NAME.csv at their energy. A word behind it, as in
`differences ts`, is another baseline: the value of the only axis.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tser_cli.engine.ablation.exits import summarise_exits
from tser_cli.engine.ablation.summary import compare, describe, summarise, with_holm
from tser_cli.report.ablation_figures import baseline_of
from tser_cli.report.csv_files import (
    STATISTICS,
    ablation_exit_schema,
    axes_of,
    read_ablation,
    read_summary,
    read_table,
)
from tser_cli.settings.config import short_name

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(
    r"(?P<begin><!-- table: (?P<file>\S+) (?P<kind>\S+)( (?P<base>\S+))? -->\n)"
    r".*?(?P<end><!-- end of table -->)",
    re.DOTALL,
)
VALIDATION = "best_validation_accuracy"
Row = dict[str, Any]


@dataclass(frozen=True)
class Ablation:
    """The tables of an ablation: its runs, what is varied, and what cells are compared with."""

    runs: pd.DataFrame
    axes: list[str]
    baseline: dict[str, str]
    measure: str
    exits: pd.DataFrame | None = None
    alternatives: pd.DataFrame | None = None

    @property
    def steps(self) -> list[str]:
        """The columns of the accuracy at each step."""
        return [name for name in self.runs if re.fullmatch(r"accuracy_at_\d+", name)]

    def summary(self, measure: str) -> list[Row]:
        """Return a row of statistics a cell for a column of the runs."""
        rows = self.runs.to_dict("records")
        return summarise(rows, self.axes, self.baseline, measure)


def documents() -> list[Path]:
    """Return the files that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fill(text: str) -> str:
    """Return a document with its tables made anew."""

    def made(found: re.Match[str]) -> str:
        return found["begin"] + table_of(found["file"], found["kind"], found["base"]) + found["end"]

    return MARKED.sub(made, text)


def table_of(file: str, kind: str, baseline: str | None = None) -> str:
    """Return the table of a marker, in Markdown."""
    ablation = read(ROOT / file)
    if baseline is not None:
        (axis,) = ablation.axes
        ablation = replace(ablation, baseline={axis: baseline})
    return markdown(*KINDS[kind](ablation))


def read(path: Path) -> Ablation:
    """Read NAME.csv and NAME_summary.csv."""
    summary = read_summary(path.with_name(f"{path.stem}_summary.csv"))
    axes = axes_of(summary)
    baseline = {axes[place]: value for place, value in baseline_of(summary).items()}
    measure = str(summary["measure"].iloc[0])
    exits_file, schema = (
        path.with_name(f"{path.stem}_early_exit.csv"),
        ablation_exit_schema(axes, 1),
    )
    exits = read_table(exits_file, schema) if exits_file.is_file() else None
    others_file = path.with_name(f"{path.stem}_alternatives.csv")
    others = pd.read_csv(others_file) if others_file.is_file() else None
    return Ablation(read_ablation(path, axes), axes, baseline, measure, exits, others)


def means(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: accuracy by step and averaged, difference, energy.

    Of a search on validation images: the best validation accuracy and the test accuracy instead.
    """
    columns = {f"at t = {name.rpartition('_')[2]}": name for name in ablation.steps}
    columns["averaged"] = "accuracy"
    last = ["energy an image"]
    if ablation.measure == VALIDATION:
        columns, last = {"validation, best epoch": VALIDATION, "test": "accuracy"}, []
    by_column = [ablation.summary(name) for name in columns.values()]
    energies = [f"{row['accuracy_mean'] / 1e6:.2f} µJ" for row in ablation.summary("energy_pj")]
    rows = [
        [
            *(f"`{row[axis]}`" for axis in ablation.axes),
            *(mean(found[place]) for found in by_column),
            difference(row),
            *(energies[place] for _ in last),
        ]
        for place, row in enumerate(ablation.summary(ablation.measure))
    ]
    against = "against the baseline, 95 % interval"
    return [*names(ablation), *columns, against, *last], rows


def differences(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: the difference to the baseline at each step and averaged."""
    columns = {f"at t = {name.rpartition('_')[2]}": name for name in ablation.steps}
    columns["averaged"] = "accuracy"
    by_column = together([ablation.summary(name) for name in columns.values()])
    rows = [
        [
            *(f"`{row[axis]}`" for axis in ablation.axes),
            *(difference(found[place]) for found in by_column),
        ]
        for place, row in enumerate(by_column[0])
    ]
    return [*names(ablation), *columns], rows


def early_exit(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: energy and accuracy at the baseline's accuracy less the margin."""
    assert ablation.exits is not None, "NAME_early_exit.csv lies beside NAME.csv"
    runs: list[Row] = ablation.exits.to_dict("records")
    rows = [
        [*(f"`{row[axis]}`" for axis in ablation.axes), *at_equal_accuracy(row)]
        for row in summarise_exits(runs, ablation.axes, ablation.baseline)
    ]
    header = ["energy an image", "accuracy there", "energy against the baseline, 95 % interval"]
    return [*names(ablation), *header], rows


def at_equal_accuracy(row: Row) -> list[str]:
    """Return energy, accuracy and difference of a cell, with how many runs get there at all."""
    if not row["n"]:
        return ["no run gets there", "", ""]
    energy = f"{row['energy_mean_pj'] / 1e6:.2f} ± {row['energy_std_pj'] / 1e6:.2f} µJ"
    tried = f" ({row['n']} of {row['n'] + row['missed']} runs)" if row["missed"] else ""
    return [energy + tried, mean(row), energy_difference(row)]


def alternatives(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: accuracy and energy of other settings, and how far they are ahead."""
    assert ablation.alternatives is not None, "NAME_alternatives.csv lies beside NAME.csv"
    found = with_holm(
        [
            against_runs(str(name), runs.set_index("seed"), ablation.runs)
            for name, runs in ablation.alternatives.groupby("alternative", sort=False)
        ]
    )
    rows = [[row["name"], mean(row), row["energy"], difference(row)] for row in found]
    against = "against the budgets at its energy, 95 % interval"
    return ["alternative", "averaged", "energy an image", against], rows


def against_runs(name: str, runs: pd.DataFrame, others: pd.DataFrame) -> Row:
    """Return the statistics of `runs`, and of their differences to `others` of equal energy."""
    energies = runs["energy_pj"] / 1e6
    spent = f"{energies.mean():.2f} ± {energies.std():.2f} µJ"
    equal = pd.Series(
        {
            seed: accuracy_at(energy, others[others["seed"] == seed])
            for seed, energy in runs["energy_pj"].items()
        }
    )
    row = {**dict.fromkeys(STATISTICS), "name": name, "energy": spent, "baseline": 0}
    return {**row, **describe(runs["accuracy"]), **compare(runs["accuracy"], equal)}


def accuracy_at(energy_pj: float, runs: pd.DataFrame) -> float:
    """Return what `runs`, joined by a line, reach at an energy; NaN beyond its ends."""
    line = runs.sort_values("energy_pj")
    ends = {"left": np.nan, "right": np.nan}
    return float(np.interp(energy_pj, line["energy_pj"], line["accuracy"], **ends))


def energy_difference(row: Row) -> str:
    """Return a difference of energies with its interval, and what may be said of it."""
    if row["baseline"]:
        return "baseline"
    found, *reach = (row[f"energy_difference{part}_pj"] / 1e6 for part in ("", "_low", "_high"))
    return f"{found:+.3f} [{reach[0]:+.3f}, {reach[1]:+.3f}] µJ{verdict(row)}"


def together(columns: list[list[Row]]) -> list[list[Row]]:
    """Return rows of statistics with Holm's procedure over all comparisons of all columns."""
    rows = with_holm([row for column in columns for row in column])
    size = len(columns[0])
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


KINDS: dict[str, Callable[[Ablation], tuple[list[str], list[list[str]]]]] = {
    "means": means,
    "differences": differences,
    "early_exit": early_exit,
    "alternatives": alternatives,
}


def names(ablation: Ablation) -> list[str]:
    """Return what the varied settings are called."""
    return [short_name(axis) for axis in ablation.axes]


def mean(row: Row) -> str:
    """Return mean and standard deviation in percent: `76.67 ± 0.20`."""
    spread = row["accuracy_std"]
    deviation = "" if spread is None else f" ± {100 * spread:.2f}"
    return f"{100 * row['accuracy_mean']:.2f}{deviation}"


def difference(row: Row) -> str:
    """Return a difference with its interval in points, and what may be said of it."""
    if row["baseline"]:
        return "baseline"
    if row["difference_low"] is None:
        return "no interval" if row["pairs"] else "none is there"
    low, high = 100 * row["difference_low"], 100 * row["difference_high"]
    return f"{100 * row['difference_mean']:+.2f} [{low:+.2f}, {high:+.2f}]{verdict(row)}"


def verdict(row: Row) -> str:
    """Return what follows a difference: nothing where it is resolved, by Holm's procedure too."""
    if row["resolved"] is None:
        return f", n = {row['pairs']}: no verdict"
    if not row["resolved"]:
        return ", not resolved"
    return "" if row["resolved_holm"] else ", not by Holm"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(check: bool) -> int:
    """Bring the documents up to date, or tell which are not."""
    stale = []
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = fill(before)
        if after != before:
            stale.append(path)
            if not check:
                path.write_text(after, encoding="utf-8")
    for path in stale:
        print(f"{'differs from its CSVs' if check else 'written'}: {path.relative_to(ROOT)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
