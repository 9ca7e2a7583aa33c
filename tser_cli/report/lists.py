"""The table of an ablation on the terminal.

Runs on the terminal: the list, and some of them side by side.

What a run folder says may come from anybody: each cell is one short line of plain text.

What there is to choose from, a row each: methods, models, data sets, recipes, cost profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table

from tser_cli.base.errors import one_line
from tser_cli.report.words import percent
from tser_cli.settings import recipe, registry
from tser_cli.settings.fields import joules, unit_of
from tser_cli.settings.registry import DatasetEntry

STAR = "* not resolved by Holm's procedure over this table"


def _points(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def ablation_table(
    title: str, summary: Sequence[dict[str, Any]], axes: Sequence[str], names: Sequence[str]
) -> Table:
    """Return a line a cell, in points of percent.

    A difference whose interval holds 0 is "not resolved"; one that is resolved by itself, but not
    among all comparisons of the table, has a star. Numbers are never cut: on a narrow terminal the
    settings are folded.
    """
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, caption_justify="left")
    if any(starred(row) for row in summary):
        shown.caption = STAR
    for name in names:
        shown.add_column(name, overflow="fold")
    for name in ("n", "accuracy %", "difference", "95 % interval"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in summary:
        settings = [str(row[axis]) for axis in axes]
        shown.add_row(
            *settings,
            str(row["n"]),
            accuracy_words(row),
            difference_words(row),
            interval_words(row),
        )
    return shown


def exits_table(
    summary: Sequence[dict[str, Any]], axes: Sequence[str], names: Sequence[str], margin: float
) -> Table:
    """Return a line a cell: the energy at which early exit reaches the baseline's accuracy."""
    title = f"early exit at the accuracy of the baseline less {100 * margin:g} points"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, caption_justify="left")
    shown.caption = "thresholds chosen on held-out images, measured on test images"
    if any(starred(row) for row in summary):
        shown.caption = f"{shown.caption}\n{STAR}"
    for name in names:
        shown.add_column(name, overflow="fold")
    found = [row["energy_mean_pj"] for row in summary if row["energy_mean_pj"] is not None]
    scale, unit = unit_of(max(found, default=0.0))
    for name in ("n", f"energy {unit}", "accuracy %", "difference", "95 % interval"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in summary:
        settings = [str(row[axis]) for axis in axes]
        tried = f" of {row['n'] + row['missed']}" if row["missed"] else ""
        energy = _in_unit(row["energy_mean_pj"], scale)
        if row["energy_std_pj"] is not None:
            energy += f" ± {_in_unit(row['energy_std_pj'], scale)}"
        shown.add_row(
            *settings,
            f"{row['n']}{tried}",
            energy,
            accuracy_words(row),
            *_energy_difference(row, scale),
        )
    return shown


def _in_unit(energy_pj: float | None, scale: float, sign: str = "") -> str:
    return "-" if energy_pj is None else f"{energy_pj / scale:{sign}.2f}"


def _energy_difference(row: Mapping[str, Any], scale: float) -> tuple[str, str]:
    if row["baseline"]:
        return "baseline", ""
    low, high = row["energy_difference_low_pj"], row["energy_difference_high_pj"]
    reach = "" if low is None else f"{_in_unit(low, scale, '+')} .. {_in_unit(high, scale, '+')}"
    if row["resolved"] == 0:
        return "not resolved", reach
    star = " *" if starred(row) else ""
    return _in_unit(row["energy_difference_pj"], scale, "+") + star, reach


def starred(row: Mapping[str, Any]) -> bool:
    """Return whether a difference is resolved by itself, but not by Holm's procedure."""
    return bool(row["resolved"] == 1 and row["resolved_holm"] == 0)


def accuracy_words(row: Mapping[str, Any]) -> str:
    """Return mean and deviation of a cell in percent: "91.24 ± 0.28"."""
    spread = row["accuracy_std"]
    return _points(row["accuracy_mean"]) + ("" if spread is None else f" ± {_points(spread)}")


def difference_words(row: Mapping[str, Any]) -> str:
    """Return the difference to the baseline in points, or what stands in its way."""
    if row["baseline"]:
        return "baseline"
    if row["resolved"] == 0:
        return "not resolved"
    return _points(row["difference_mean"], "+") + (" *" if starred(row) else "")


def interval_words(row: Mapping[str, Any], of: str = "difference") -> str:
    """Return the interval of the difference in points: over seeds, or "two_way", images too."""
    low, high = row[f"{of}_low"], row[f"{of}_high"]
    return "" if low is None else f"{_points(low, '+')} .. {_points(high, '+')}"


Row = Mapping[str, Any]
LONGEST = 60  # characters of a cell
GAP, EDGES = 3, 1  # columns of space between two columns of the table, and besides at its edges
AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def age(seconds: float) -> str:
    """Write a time span by its largest unit: 200 -> "3 min", 90000 -> "1 d"."""
    return _by_unit(max(0.0, seconds), AGES)


def size(count: float) -> str:
    """Write a number of bytes by its largest unit: 3_000_000 -> "2 MiB"."""
    return _by_unit(count, SIZES)


def _by_unit(value: float, units: Sequence[tuple[float, str]]) -> str:
    scale, unit = next((known for known in units if value >= known[0]), units[-1])
    return f"{value / scale:,.0f} {unit}"


def text(value: Any) -> str:
    """Write a value of a run folder as one short line; None is "-", an empty text two quotes."""
    return "-" if value is None else one_line(str(value) or '""', LONGEST)


# In the order of the table. Where the terminal is narrow, columns are left out from the end of
# `FIRST`: a name tells model, T, method and seed as well.
COLUMNS: dict[str, Callable[[Row, float], str]] = {
    "run": lambda row, now: text(row["name"]),
    "kind": lambda row, now: text(row["kind"]),
    "data set": lambda row, now: text(row["dataset"]),
    "teacher": lambda row, now: text(row["teacher"]),
    "student": lambda row, now: text(row["student"]),
    "T": lambda row, now: text(row["timesteps"]),
    "method": lambda row, now: text(row["method"]),
    "seed": lambda row, now: text(row["seed"]),
    "state": lambda row, now: text(row["state"]),
    "accuracy": lambda row, now: percent(row["accuracy"]),
    "energy": lambda row, now: "-" if row["energy_pj"] is None else joules(row["energy_pj"]),
    "age": lambda row, now: age(now - row["when"]) if row["when"] else "-",
    "size": lambda row, now: size(row["size"]),
}
FIRST = (
    *("run", "state", "accuracy", "energy", "age", "data set", "size", "method", "T"),
    *("teacher", "seed", "student", "kind"),
)
RIGHT = ("T", "seed", "accuracy", "energy", "age", "size")


def listing(rows: Sequence[Row], now: float, width: int | None) -> Table:
    """Return a line a run; `now` in seconds since 1970. `width` None: as wide as it gets."""
    cells = {name: [cell(row, now) for row in rows] for name, cell in COLUMNS.items()}
    shown = fitting(cells, width)
    table = Table(box=SIMPLE_HEAD, caption_justify="left")
    left_out = [name for name in COLUMNS if name not in shown]
    if left_out:
        table.caption = f"no room for: {', '.join(left_out)} (a wider terminal, or --json)"
    for name in shown:
        justify, fold = ("right" if name in RIGHT else "left"), name == "run"
        table.add_column(name, justify=justify, no_wrap=not fold, overflow="fold")  # type: ignore[arg-type]
    for place in range(len(rows)):
        table.add_row(*(cells[name][place] for name in shown))
    return table


def fitting(cells: Mapping[str, Sequence[str]], width: int | None) -> list[str]:
    """Return the columns for which there is room, in the order of the table."""
    chosen, room = {"run"}, None if width is None else width - EDGES
    for name in FIRST:
        needed = max(map(cell_len, [name, *cells[name]])) + GAP
        if room is not None:
            room -= needed
            if room < 0 and name != "run":
                break
        chosen.add(name)
    return [name for name in COLUMNS if name in chosen]


def letters(count: int) -> list[str]:
    """Return short names for so many runs: A, B, ... Z, A1, B1, ..."""
    rounds = ("", *map(str, range(1, 1 + count // len(ascii_uppercase))))
    return [f"{letter}{turn}" for turn in rounds for letter in ascii_uppercase][:count]


def figures(rows: Sequence[Row]) -> Table:
    """Return a line a run: accuracy with its interval over images, energy, and against the first.

    A row has `entry` (a row of the list), `low`, `high`, `difference` and `p_value`.
    """
    table = Table(title="results", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("accuracy", "95 % interval", "energy", "against A", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for letter, row in zip(letters(len(rows)), rows, strict=True):
        entry = row["entry"]
        energy = entry["energy_pj"]
        table.add_row(
            letter,
            text(entry["state"]),
            percent(entry["accuracy"]),
            "-" if row["low"] is None else f"{100 * row['low']:.2f} .. {100 * row['high']:.2f}",
            "-" if energy is None else joules(energy),
            "" if row["difference"] is None else f"{100 * row['difference']:+.2f}",
            "" if row["p_value"] is None else f"{row['p_value']:.2g}",
        )
    return table


def side_by_side(title: str, pairs: Sequence[tuple[str, Sequence[Any]]]) -> Table:
    """Return a line a name, with its value in each run."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for letter in letters(len(pairs[0][1])):
        table.add_column(letter, overflow="fold")
    for name, values in pairs:
        table.add_row(text(name), *map(text, values))
    return table


Rows = list[dict[str, Any]]
COMMAND = "# command:"


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
    """Return the architectures, and as what each can be built."""
    return [
        {
            "name": name,
            "as": "SNN" if entry.spiking_only else "ANN, SNN",
            "from": origin(entry.target),
        }
        for name, entry in registry.MODELS.items()
    ]


def datasets() -> Rows:
    """Return the data sets, and the recipes that are taken where none is named."""
    return [
        {
            "name": name,
            "images": where_from(name, entry),
            "student recipe": entry.student_recipe,
            "teacher recipe": entry.teacher_recipe,
            "from": origin(entry.target),
        }
        for name, entry in registry.DATASETS.items()
    ]


def where_from(name: str, entry: DatasetEntry) -> str:
    """Return in a few words where the images come from."""
    if entry.own_images:
        return "your own, in --data-dir"
    known = {"digits": "with scikit-learn", "imagenet": "in --data-dir"}
    return known.get(name, "downloaded" if registry.is_built_in(entry.target) else "")


def recipes() -> Rows:
    """Return the packaged recipes, and what the head of each says beside its command."""
    return [{"name": name, "about": about(name)} for name in recipe.available()]


def about(name: str) -> str:
    """Return the comment at the head of a packaged recipe, without the command in it."""
    lines = recipe.find(name).read_text(encoding="utf-8").splitlines()
    head = lines[: next((n for n, line in enumerate(lines) if not line.startswith("#")), None)]
    return " ".join(line.removeprefix("# ") for line in head if not line.startswith(COMMAND))


def profiles(known: Iterable[Any]) -> Rows:
    """Return cost profiles (`tser_cli.energy.prices`), with their constants and sources."""
    return [
        {
            "name": profile.name,
            "MAC pJ": profile.mac_pj,
            "AC pJ": profile.ac_pj,
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


def choices_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line a row."""
    shown = Table(box=SIMPLE_HEAD)
    for place, name in enumerate(rows[0]):
        shown.add_column(name, no_wrap=place == 0, overflow="fold")
    for row in rows:
        shown.add_row(*map(str, row.values()))
    return shown
