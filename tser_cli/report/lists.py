"""Tables on the terminal: of runs, of ablations, and of what there is to choose from.

What a run folder says may come from anybody: each cell is one short line of plain text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tser_cli.base.errors import one_line
from tser_cli.report.words import new_table, percent
from tser_cli.settings import recipe, registry
from tser_cli.settings.config import OwnSizes
from tser_cli.settings.fields import joules, unit_of

if TYPE_CHECKING:
    from tser_cli.report.comparison import CellStatistics, RunFigures

STAR = "* not resolved by Holm's procedure over this table"


def ablation_table(title: str, summary: Sequence[CellStatistics], names: Sequence[str]) -> Table:
    """Return a line a cell, in points of percent; `names`: what the varied settings are called.

    A difference whose interval holds 0 is "not resolved"; one that is resolved by itself, but not
    among all comparisons of the table, has a star. Numbers are never cut: on a narrow terminal the
    settings are folded.
    """
    numbers = ("n", "accuracy %", "difference", "95 % interval")
    drop = ("95 % interval", "n", "difference")
    shown = new_table(title, names, numbers, drop, max(4, 12 // len(names)))
    shown.caption = STAR if any(cell.starred for cell in summary) else None
    for cell in summary:
        shown.add_row(
            *cell.settings.values(),
            str(cell.n),
            accuracy_words(cell),
            difference_words(cell),
            interval_words(cell.interval),
        )
    return shown


def exits_table(
    summary: Sequence[tuple[CellStatistics, CellStatistics, int, float | None]],
    names: Sequence[str],
    margin: float,
) -> Table:
    """Return a line a cell: the energy at which early exit reaches the baseline's accuracy.

    `summary`: energy and accuracy of a cell, how many of its runs never get there, and the
    milliseconds of events that the others see.
    """
    title = f"early exit at the accuracy of the baseline less {100 * margin:g} points"
    captions = ["thresholds chosen on held-out images, measured on test images"]
    captions += [STAR] if any(energy.starred for energy, *_ in summary) else []
    if any(missed for _, _, missed, _ in summary):
        captions.append("? no verdict: the runs that miss that accuracy are in no mean")
    # one unit for the whole column, so that its numbers can be compared at a glance
    scale, unit = unit_of(max((energy.mean or 0.0 for energy, *_ in summary), default=0.0))
    timed = any(one[-1] is not None for one in summary)
    columns = ("n", f"energy {unit}", "accuracy %", *["seen ms"] * timed, "difference")
    columns += ("95 % interval",)
    drop = ("95 % interval", "n", "difference", "accuracy %")
    shown = new_table(title, names, columns, drop, max(4, 12 // len(names)))
    shown.caption = "\n".join(captions)
    for energy, accuracy, missed, seen in summary:
        shown.add_row(
            *energy.settings.values(),
            f"{energy.n} of {energy.n + missed}" if missed else str(energy.n),
            accuracy_words(energy, 1 / scale),
            accuracy_words(accuracy),
            *[_scaled(seen, 1)] * timed,
            difference_words(energy, 1 / scale) + (" ?" if missed else ""),
            "" if energy.is_baseline else interval_words(energy.interval, 1 / scale),
        )
    return shown


def _scaled(value: float | None, scale: float, sign: str = "") -> str:
    return "-" if value is None else f"{scale * value:{sign}.2f}"


def accuracy_words(cell: CellStatistics, scale: float = 100) -> str:
    """Return mean and deviation of a cell, in percent if not told else: "91.24 ± 0.28"."""
    spread = "" if cell.std is None else f" ± {_scaled(cell.std, scale)}"
    return _scaled(cell.mean, scale) + spread


def difference_words(cell: CellStatistics, scale: float = 100) -> str:
    """Return the difference to the baseline in points, or what stands in its way."""
    if cell.is_baseline:
        return "baseline"
    # None is no verdict at all, as of fewer than five pairs: the difference is shown then
    if cell.resolved is False:
        return "not resolved"
    return _scaled(cell.difference, scale, "+") + (" *" if cell.starred else "")


def interval_words(reach: tuple[float, float] | None, scale: float = 100) -> str:
    """Return an interval of a difference in points."""
    return "" if reach is None else " .. ".join(_scaled(end, scale, "+") for end in reach)


LONGEST = 60  # characters of a cell
AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def age(seconds: float) -> str:
    """Write a time span by its largest unit: 200 -> "3 min", 90000 -> "1 d"."""
    # the clock of another machine may be ahead: no run is younger than now
    return _by_unit(max(0.0, seconds), AGES)


def size(count: float) -> str:
    """Write a number of bytes by its largest unit: 3_000_000 -> "2 MiB"."""
    return _by_unit(count, SIZES)


def energies(column_pj: Sequence[float | None]) -> list[str]:
    """Write a column of energies, all in the unit of the largest; None is "-"."""
    largest = max((pj for pj in column_pj if pj is not None), default=None)
    return ["-" if pj is None else joules(pj, largest) for pj in column_pj]


def _by_unit(value: float, units: Sequence[tuple[float, str]]) -> str:
    scale, unit = next((known for known in units if value >= known[0]), units[-1])
    return f"{value / scale:,.0f} {unit}"


def text(value: Any) -> str:
    """Write a value of a run folder as one short line; None is "-", an empty text two quotes."""
    return "-" if value is None else one_line(str(value) or '""', LONGEST)


# How the columns of a list of runs that are no plain text are written.
FORMS: dict[str, Callable[[Any], str]] = {
    "accuracy": percent,
    "age": lambda value: "-" if value is None else age(value),
    "size": size,
}
# Where the terminal is narrow, columns are left out from the end of this: a name tells model, T,
# method and seed as well.
FIRST = (
    *("run", "state", "accuracy", "energy", "age", "data set", "size", "method", "T"),
    *("teacher", "seed", "student", "kind"),
)
RIGHT = ("T", "seed", "accuracy", "energy", "age", "size")


def listing(columns: Mapping[str, Sequence[Any]]) -> Table:
    """Return a line a run of columns of values, with as many columns as there is room for."""
    cells = {
        name: energies(of) if name == "energy" else [*map(FORMS.get(name, text), of)]
        for name, of in columns.items()
    }
    # the name is never left out: it is what other commands take
    table = new_table(drop=[name for name in reversed(FIRST) if name != "run"])
    for name in cells:
        justify, fold = ("right" if name in RIGHT else "left"), name == "run"
        table.add_column(name, justify=justify, no_wrap=not fold, overflow="fold")  # type: ignore[arg-type]
    for line in zip(*cells.values(), strict=True):
        table.add_row(*line)
    return table


def letters(count: int) -> list[str]:
    """Return short names for so many runs: A, B, ... Z, A1, B1, ..."""
    rounds = ("", *map(str, range(1, 1 + count // len(ascii_uppercase))))
    return [f"{letter}{turn}" for turn in rounds for letter in ascii_uppercase][:count]


def figures(runs: Sequence[RunFigures]) -> Table:
    """Return a line a run: accuracy with its interval over images, energy, difference."""
    numbers = ("accuracy", "95 % interval", "energy", "against A", "p")
    table = new_table("results", ("", "state"), numbers, ("95 % interval", "p", "state"))
    spent = energies([run.energy_pj for run in runs])
    for letter, run, energy in zip(letters(len(runs)), runs, spent, strict=True):
        reach = None if run.low is None or run.high is None else (100 * run.low, 100 * run.high)
        table.add_row(
            letter,
            text(run.state),
            percent(run.accuracy),
            "-" if reach is None else "{:.2f} .. {:.2f}".format(*reach),
            energy,
            "" if run.difference is None else f"{100 * run.difference:+.2f}",
            "" if run.p_value is None else f"{run.p_value:.2g}",
        )
    return table


def side_by_side(title: str, pairs: Sequence[tuple[str, Sequence[Any]]]) -> Table:
    """Return a line a name, with its value in each run."""
    # folded, never cut: the end of a path may be all that differs
    table = new_table(title, ("", *letters(len(pairs[0][1]))))
    for name, values in pairs:
        table.add_row(text(name), *map(text, values))
    return table


Rows = list[dict[str, Any]]


def methods() -> Rows:
    """Return the training methods, with the weights that each reads and their defaults."""
    return [
        {
            "name": name,
            "summary": entry.settings.summary,
            "source": entry.settings.source,
            "weights": entry.settings.weights(),
            "deviations": entry.settings.deviations,
            "needs_teacher": entry.needs_teacher,
            "from": origin(entry.target),
        }
        for name, entry in registry.METHODS.items()
    ]


def models() -> Rows:
    """Return the architectures, as what each can be built, and the sizes in [model] that it has."""
    rows = []
    for name, entry in registry.MODELS.items():
        of, kinds = entry.settings(), "SNN" if entry.spiking_only else "ANN, SNN"
        sizes = of.sizes() if isinstance(of, OwnSizes) else {}
        listed = ", ".join(f"{key} {value}" for key, value in sizes.items())
        rows.append({"name": name, "as": kinds, "sizes": listed, "from": origin(entry.target)})
    return rows


def datasets() -> Rows:
    """Return the data sets, and the recipes that are taken where none is named."""
    known = {"digits": "with scikit-learn"}
    known |= dict.fromkeys(("imagenet", "n-mnist", "cifar10-dvs", "dvs-gesture"), "in --data-dir")
    return [
        {
            "name": name,
            # where the images come from: those of a plug-in are its own affair
            "images": "your own, in --data-dir"
            if entry.own_images and name not in known
            else known.get(name, "downloaded" if registry.is_built_in(entry.target) else ""),
            "student recipe": entry.student_recipe,
            "teacher recipe": entry.teacher_recipe,
            "from": origin(entry.target),
        }
        for name, entry in registry.DATASETS.items()
    ]


def recipes() -> Rows:
    """Return the packaged recipes, with the comment at the head of each, without the command."""
    rows = []
    for name in recipe.available():
        lines = recipe.find(name).read_text(encoding="utf-8").splitlines()
        head = itertools.takewhile(lambda line: line.startswith("#"), lines)
        said = [line.removeprefix("# ") for line in head if not line.startswith("# command:")]
        rows.append({"name": name, "about": " ".join(said)})
    return rows


# handed in: this floor is below that of energies, which knows them
def profiles(known: Iterable[Any]) -> Rows:
    """Return cost profiles (`tser_cli.energy.prices`), with their constants and sources."""
    return [
        {
            "name": profile.name,
            "MAC pJ": profile.mac_pj,
            "AC pJ": profile.ac_pj,
            "16-bit AC pJ": profile.ac16_pj,
            "measured": profile.measured,
            "step, s": profile.step_seconds,
            "technology": profile.technology,
            "source": profile.source,
        }
        for profile in known
    ]


def origin(target: str) -> str:
    """Return where the code of a name comes from: tser itself, or the module of a plug-in."""
    return "tser" if registry.is_built_in(target) else target.partition(":")[0]


ROWS: Mapping[str, Callable[[], Rows]] = {
    "methods": methods,
    "models": models,
    "datasets": datasets,
    "recipes": recipes,
}


def students_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line a packaged student; energies are priced by the profile beside them."""
    right = ("accuracy", "teacher", "T", "energy", "size", "parameters")
    shown = new_table(left=("name",), right=right, drop=("profile", "parameters", "size"))
    shown.add_column("profile", no_wrap=True)
    for row, energy in zip(rows, energies([row["energy_pj"] for row in rows]), strict=True):
        shown.add_row(
            *(row["name"], percent(row["accuracy"]), percent(row["teacher"]), str(row["T"])),
            *(energy, size(row["size"]), f"{row['parameters']:,}", row["profile"]),
        )
    return shown


def choices_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line a row."""
    shown = new_table(left=list(rows[0]))
    shown.columns[0].no_wrap = True
    said = {"None": "", "True": "yes", "False": "no"}
    for row in rows:
        shown.add_row(*(said.get(str(value), str(value)) for value in row.values()))
    return shown
