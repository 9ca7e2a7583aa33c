"""Write the tables of README.md and docs/*.md from the CSVs that they show.

    python docs/make_tables.py           # brings the tables up to date
    python docs/make_tables.py --check   # exit code 1 where one is not

A table stands between `<!-- table: FOLDER/NAME.csv means -->` and `<!-- end of table -->`; its
figures come from NAME.csv (a row a run), its axes, baseline and measure from NAME_summary.csv.
`means` shows what each cell reached, `differences` how far it is from its baseline at each step,
`early_exit` the energy at the baseline's accuracy, from NAME_early_exit.csv; `alternatives` what
the runs of NAME_alternatives.csv reached, against NAME.csv at their energy. `steps:MEASURE` shows
another measure at each step, such as `steps:accuracy_cumulative` or `steps:ece_at`, and
`differences:MEASURE` its differences. A word behind it, as in `differences ts`, is another
baseline: the value of the only axis. `against:OTHER` shows how far each cell is from the same one
of OTHER.csv, beside NAME.csv, at each step and averaged. `over:AXIS` shows differences with the
values of an axis in place of seeds, each by the mean of its seeds. `claim` shows the comparisons
that a design fixed beforehand, `answer` those of all designs, and `search` every point of a search.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from tser_cli.report.ablation_figures import baseline_of
from tser_cli.report.comparison import (
    CellStatistics,
    Key,
    Values,
    compare,
    describe,
    statistics_in,
    summarise,
    with_holm,
    without_verdict,
)
from tser_cli.report.csv_files import (
    ablation_exit_schema,
    axes_of,
    read_ablation,
    read_summary,
    read_table,
)
from tser_cli.settings.names import short_name

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(
    r"(?P<begin><!-- table: (?P<file>\S+) (?P<kind>\S+)( (?P<base>\S+))? -->\n)"
    r".*?(?P<end><!-- end of table -->)",
    re.DOTALL,
)
VALIDATION = "best_validation_accuracy"


@dataclass(frozen=True)
class Ablation:
    """The tables of an ablation: its runs, what is varied, and what cells are compared with."""

    runs: pd.DataFrame
    axes: list[str]
    baseline: dict[str, str]
    measure: str
    exits: pd.DataFrame | None = None
    alternatives: pd.DataFrame | None = None
    path: Path | None = None

    @property
    def steps(self) -> list[str]:
        """The columns of the accuracy at each step."""
        return [name for name in self.runs if re.fullmatch(r"accuracy_at_\d+", name)]

    def summary(self, measure: str) -> list[CellStatistics]:
        """Return the statistics of each cell for a column of the runs."""
        finished = self.runs[self.runs["state"] == "finished"]
        return summarise(by_cell(finished, self.axes, measure), self.axes, self.baseline, measure)


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
    if kind in OF_FILE:
        return markdown(*OF_FILE[kind](ROOT / file))
    ablation = read(ROOT / file)
    if baseline is not None:
        (axis,) = ablation.axes
        ablation = replace(ablation, baseline={axis: baseline})
    name, _, measure = kind.partition(":")
    return markdown(*(OF_MEASURE[name](ablation, measure) if measure else KINDS[kind](ablation)))


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
    return Ablation(read_ablation(path, axes), axes, baseline, measure, exits, others, path)


def by_cell(runs: pd.DataFrame, axes: Sequence[str], column: str) -> dict[Key, Values]:
    """Return each cell's values of a column by seed; one whose fields are empty has none."""
    return {
        tuple(map(str, key)): {
            int(seed): float(value)
            for seed, value in cell.set_index("seed")[column].dropna().items()
        }
        for key, cell in runs.groupby(list(axes), sort=False)
    }


def means(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: accuracy by step and averaged, difference, energy.

    Of a search on validation images: the best validation accuracy and the test accuracy instead.
    """
    columns = columns_of(ablation, "")
    last = ["energy an image"]
    if ablation.measure == VALIDATION:
        columns, last = {"validation, best epoch": VALIDATION, "test": "accuracy"}, []
    by_column = [ablation.summary(name) for name in columns.values()]
    energies = [f"{(cell.mean or 0) / 1e6:.2f} µJ" for cell in ablation.summary("energy_pj")]
    rows = [
        [
            *(f"`{value}`" for value in cell.settings.values()),
            *(mean(found[place]) for found in by_column),
            difference(cell),
            *(energies[place] for _ in last),
        ]
        for place, cell in enumerate(ablation.summary(ablation.measure))
    ]
    against = "against the baseline, 95 % interval"
    return [*names(ablation), *columns, against, *last], rows


def differences(ablation: Ablation, measure: str = "") -> tuple[list[str], list[list[str]]]:
    """Return header and rows: the difference to the baseline at each step and averaged."""
    return at_steps(ablation, measure, together, difference)


def steps(ablation: Ablation, measure: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: mean and deviation of a measure at each step."""
    return at_steps(ablation, measure, list, mean)


def against_beside(ablation: Ablation, name: str) -> tuple[list[str], list[list[str]]]:
    """Return `against` the table of this name that lies beside the ablation's own."""
    assert ablation.path is not None, "it was read"
    return against(ablation, read(ablation.path.with_stem(name)))


def against(ablation: Ablation, other: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: how far each cell is from the same one of `other`, by seed."""
    columns = columns_of(ablation, "")
    by_column = []
    for name in columns.values():
        ours, theirs = (by_cell(one.runs, one.axes, name) for one in (ablation, other))
        shared = {key: values for key, values in ours.items() if key in theirs}
        found = [compare(describe(v, {}, name), v, theirs[key]) for key, v in shared.items()]
        by_column.append(found)
    rows = [
        [*(f"`{value}`" for value in key), *(difference(one) for one in found)]
        for key, *found in zip(shared, *together(by_column), strict=True)
    ]
    return [*names(ablation), *columns], rows


def over(ablation: Ablation, axis: str) -> tuple[list[str], list[list[str]]]:
    """Return `differences` with the values of an axis in place of seeds: each its seeds' mean."""
    axes = [one for one in ablation.axes if one != axis]
    columns = list(columns_of(ablation, "").values())
    runs = ablation.runs.groupby([*axes, axis], sort=False)[columns].mean().reset_index()
    runs["seed"], runs["state"] = pd.factorize(runs[axis])[0], "finished"
    return differences(replace(ablation, runs=runs, axes=axes))


def at_steps(
    ablation: Ablation,
    measure: str,
    judge: Callable[[list[list[CellStatistics]]], list[list[CellStatistics]]],
    show: Callable[[CellStatistics, bool], str],
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: a cell a row and a step a column, each shown by `show`."""
    columns = columns_of(ablation, measure)
    by_column = judge([ablation.summary(name) for name in columns.values()])
    percent = not measure.startswith("loss")
    rows = [
        [
            *(f"`{value}`" for value in cell.settings.values()),
            *(show(found[place], percent) for found in by_column),
        ]
        for place, cell in enumerate(by_column[0])
    ]
    return [*names(ablation), *columns], rows


def columns_of(ablation: Ablation, measure: str) -> dict[str, str]:
    """Return the columns of the runs by their headings: accuracy by step and averaged if ""."""
    numbers = [name.rpartition("_")[2] for name in ablation.steps]
    if not measure:
        at_t = {f"at t = {t}": f"accuracy_at_{t}" for t in numbers}
        return {**at_t, "averaged": "accuracy"}
    axis = "t" if measure.endswith("_at") else "T'"
    return {f"{axis} = {t}": f"{measure}_{t}" for t in numbers}


def early_exit(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: energy and accuracy at the baseline's accuracy less the margin."""
    assert ablation.exits is not None, "NAME_early_exit.csv lies beside NAME.csv"
    axes, runs = ablation.axes, ablation.exits
    energies, accuracies = (
        summarise(by_cell(runs, axes, column), axes, ablation.baseline, column)
        for column in ("energy_pj", "accuracy")
    )
    missed = runs[runs["target_accuracy"].notna() & runs["energy_pj"].isna()]
    often = Counter(tuple(map(str, key)) for key in missed[axes].itertuples(index=False))
    rows = [
        [
            *(f"`{value}`" for value in energy.settings.values()),
            *at_equal_accuracy(energy, accuracy, often[(*energy.settings.values(),)]),
        ]
        for energy, accuracy in zip(energies, accuracies, strict=True)
    ]
    header = ["energy an image", "accuracy there", "energy against the baseline, 95 % interval"]
    return [*names(ablation), *header], rows


def at_equal_accuracy(energy: CellStatistics, accuracy: CellStatistics, missed: int) -> list[str]:
    """Return energy, accuracy and difference of a cell, with how many runs get there at all."""
    if not energy.n:
        return ["no run gets there", "", ""]
    spent = f"{(energy.mean or 0) / 1e6:.2f} ± {(energy.std or 0) / 1e6:.2f} µJ"
    if missed:
        spent += f" ({energy.n} of {energy.n + missed} runs)"
        energy = without_verdict(energy)
    return [spent, mean(accuracy), energy_difference(energy)]


def alternatives(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: accuracy and energy of other settings, and how far they are ahead."""
    assert ablation.alternatives is not None, "NAME_alternatives.csv lies beside NAME.csv"
    groups = dict(list(ablation.alternatives.groupby("alternative", sort=False)))
    found = with_holm(
        [against_runs(runs.set_index("seed"), ablation.runs) for runs in groups.values()]
    )
    energies = [runs["energy_pj"] / 1e6 for runs in groups.values()]
    spent = [f"{energy.mean():.2f} ± {energy.std():.2f} µJ" for energy in energies]
    rows = [
        [str(name), mean(cell), energy, difference(cell)]
        for name, cell, energy in zip(groups, found, spent, strict=True)
    ]
    against = "against the budgets at its energy, 95 % interval"
    return ["alternative", "averaged", "energy an image", against], rows


def against_runs(runs: pd.DataFrame, others: pd.DataFrame) -> CellStatistics:
    """Return the statistics of `runs`, and of their differences to `others` of equal energy."""
    equal = {
        int(seed): accuracy_at(energy, others[others["seed"] == seed])
        for seed, energy in runs["energy_pj"].items()
    }
    values = {int(seed): float(value) for seed, value in runs["accuracy"].items()}
    known = {seed: value for seed, value in equal.items() if not np.isnan(value)}
    return compare(describe(values, {}, "accuracy"), values, known)


def accuracy_at(energy_pj: float, runs: pd.DataFrame) -> float:
    """Return what `runs`, joined by a line, reach at an energy; NaN beyond its ends."""
    line = runs.sort_values("energy_pj")
    ends = {"left": np.nan, "right": np.nan}
    return float(np.interp(energy_pj, line["energy_pj"], line["accuracy"], **ends))


def energy_difference(cell: CellStatistics) -> str:
    """Return a difference of energies with its interval, and what may be said of it."""
    if cell.is_baseline:
        return "baseline"
    assert cell.difference is not None and cell.interval is not None, "there are several seeds"
    found, low, high = (value / 1e6 for value in (cell.difference, *cell.interval))
    return f"{found:+.3f} [{low:+.3f}, {high:+.3f}] µJ{verdict(cell)}"


def together(columns: list[list[CellStatistics]]) -> list[list[CellStatistics]]:
    """Return statistics with Holm's procedure over all comparisons of all columns."""
    cells = with_holm([cell for column in columns for cell in column])
    size = len(columns[0])
    return [cells[begin : begin + size] for begin in range(0, len(cells), size)]


KINDS: dict[str, Callable[[Ablation], tuple[list[str], list[list[str]]]]] = {
    "means": means,
    "differences": differences,
    "early_exit": early_exit,
    "alternatives": alternatives,
}


def names(ablation: Ablation) -> list[str]:
    """Return what the varied settings are called."""
    return [short_name(axis) for axis in ablation.axes]


@dataclass(frozen=True)
class Design:
    """What was fixed before the runs: the tables of a data set, and of how many steps each is."""

    data: str
    tables: dict[str, tuple[str, int]]


# By the name of the file whose `claim` they are; whom they compare, and where, is COMPARISONS. See
# recipes/glyphs/README.md, and the head of recipes/ablations/fashion-mnist_ladder.toml.
DESIGNS = {
    "glyphs_each_at_its_best": Design(
        "glyphs", {"(b)": ("glyphs_each_at_its_best", 4), "(a)": ("glyphs_components", 4)}
    ),
    "fashion-mnist_ladder": Design(
        "Fashion-MNIST",
        {"T = 2": ("fashion-mnist_ladder", 2), "T = 4": ("fashion-mnist_ladder_4_steps", 4)},
    ),
}
COMPARISONS = (
    ("ts", "kd", "averaged over all steps", "accuracy_cumulative_{steps}", "steps"),
    ("ts", "kd", "the first step alone", "accuracy_at_1", "steps"),
    ("tser", "ts", "averaged over all steps", "accuracy_cumulative_{steps}", "steps_ts"),
)


def claim(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: each comparison, with Holm's procedure over all of the design.

    One without runs, or with too few for a test, has a p-value of 1: once it has them, no verdict
    on another one gets worse.
    """
    tables = DESIGNS[path.stem].tables
    planned = [(table, *one) for table in tables for one in COMPARISONS]
    found = []
    for table, method, _, _, measure, file in planned:
        name, count = tables[table]
        beside = path.with_name(f"{name}_{file}.csv")
        found.append(step_statistics(beside, measure.format(steps=count), method))
    never = CellStatistics({}, "", 0, None, None, p_value=1.0)
    rows = []
    known = [one or never for one in found]
    judged = with_holm([replace(one, p_value=1.0) if one.p_value is None else one for one in known])
    for (table, method, base, where, _, _), cell in zip(planned, judged, strict=True):
        if cell.n:
            ends = [f"{100 * end:+.2f}" for end in cell.two_way or ()]
            both = f"[{', '.join(ends)}]" if ends else "no interval"
            shown = (str(cell.pairs), difference(cell), both)
            rows.append([table, f"`{method}` - `{base}`", where, *shown])
    header = ["table", "comparison", "of what", "n", "points, 95 % interval over seeds"]
    return [*header, "over seeds and images"], rows


def answer(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: of each table of each design beside `path`, its comparisons."""
    rows: dict[str, dict[str, str]] = {}
    for stem, design in DESIGNS.items():
        for table, compared, where, n, points, _ in claim(path.with_stem(stem))[1]:
            row = rows.setdefault(f"{design.data}, {table}", {"n": n})
            row[f"{compared}, {where}"] = points
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[name, *(row.get(one, "not run") for one in columns)] for name, row in rows.items()]
    return ["data set, table", *columns], cells


def step_statistics(path: Path, measure: str, method: str) -> CellStatistics | None:
    """Return what NAME_steps.csv says of a method's measure; None where there is no such file."""
    if not path.is_file():
        return None
    table = read_summary(path)
    rows = table[(table["measure"] == measure) & (table["method.name"] == method)]
    (row,) = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return statistics_in(row)


def search(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: the points of a search, the best of each method marked."""
    runs = read_ablation(path, ["method.name"])
    best = runs.groupby("method.name")["best_validation_accuracy"].transform("max")
    rows = []
    for place, (_, run) in enumerate(runs.iterrows()):
        weights = dict(pair.split("=") for pair in run["weights"].split("; "))
        reached = f"{100 * run['best_validation_accuracy']:.2f}"
        chosen = run["best_validation_accuracy"] == best.iloc[place]
        told = (weights["kd_weight"], f"{run['temperature']:g}", weights["entropy_weight"])
        rows.append([f"`{run['method.name']}`", *told, f"**{reached}**" if chosen else reached])
    return ["method", "kd_weight", "temperature", "entropy_weight", "held-out images, %"], rows


OF_FILE: dict[str, Callable[[Path], tuple[list[str], list[list[str]]]]] = {
    "answer": answer,
    "claim": claim,
    "search": search,
}
OF_MEASURE: dict[str, Callable[[Ablation, str], tuple[list[str], list[list[str]]]]] = {
    "steps": steps,
    "differences": differences,
    "against": against_beside,
    "over": over,
}


def mean(cell: CellStatistics, percent: bool = True) -> str:
    """Return mean and standard deviation in percent, `76.67 ± 0.20`, or as they are."""
    if cell.mean is None:
        return "none is there"
    scale, digits = (100, 2) if percent else (1, 3)
    deviation = "" if cell.std is None else f" ± {scale * cell.std:.{digits}f}"
    return f"{scale * cell.mean:.{digits}f}{deviation}"


def difference(cell: CellStatistics, percent: bool = True) -> str:
    """Return a difference with its interval, in points or as it is, and what may be said of it."""
    if cell.is_baseline:
        return "baseline"
    if cell.difference is None or cell.interval is None:
        return "no interval" if cell.pairs else "none is there"
    scale, digits = (100, 2) if percent else (1, 3)
    found, low, high = (scale * value for value in (cell.difference, *cell.interval))
    return f"{found:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{verdict(cell)}"


def verdict(cell: CellStatistics) -> str:
    """Return what follows a difference: nothing where it is resolved, by Holm's procedure too."""
    if cell.resolved is None:
        return f", n = {cell.pairs}: no verdict"
    if not cell.resolved:
        return ", not resolved"
    return "" if cell.resolved_holm else ", not by Holm"


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
