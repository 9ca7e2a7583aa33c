"""Runs on the terminal: the list, and some of them side by side.

What a run folder says may come from anybody: each cell is one short line of plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table

from tser_cli.quantities import joules
from tser_cli.report.console import percent
from tser_cli.visible import one_line

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
