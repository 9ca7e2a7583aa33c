"""Several runs of a report page side by side: what they reached, and which settings differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tser_cli.quantities import joules
from tser_cli.report.page_values import Accuracy, Energy, Page, Pair, RunReport
from tser_cli.report.page_words import duration, percent, points

# Where a run lies, and what numbers its start, is no setting that two runs differ in.
PLACES = ("model.teacher", "data.dir")
Measure = Callable[[RunReport], float | None]


@dataclass(frozen=True)
class Entry:
    """A run's value in words; `aside` compares it with the first run's; `differs` from that one."""

    text: str
    aside: str = ""
    differs: bool = False


@dataclass(frozen=True)
class Compared:
    """Runs side by side: rows of a name and an entry a run, and pairs by the other one's letter."""

    measures: tuple[tuple[str, tuple[Entry, ...]], ...]
    settings: tuple[tuple[str, tuple[Entry, ...]], ...]
    pairs: tuple[tuple[str, Pair], ...]


def compare_runs(page: Page) -> Compared | None:
    """Return the runs of a page side by side; None where there are fewer than two."""
    runs = page.runs
    if len(runs) < 2:
        return None
    by_name = {run.name: letter for run, letter in zip(runs, page.letters, strict=True)}
    return Compared(
        measures=tuple(_measures(runs)),
        settings=tuple(_settings(runs)),
        pairs=tuple((by_name.get(pair.other, ""), pair) for pair in page.pairs),
    )


def _measures(runs: Sequence[RunReport]) -> list[tuple[str, tuple[Entry, ...]]]:
    rows = [
        ("network", _words(runs, "model")),
        ("method", _words(runs, "method")),
        ("time steps", _words(runs, "timesteps")),
        ("accuracy, all steps", _numbers(runs, _accuracy, percent, points)),
        ("accuracy, first step alone", _numbers(runs, _first, percent, points)),
        ("teacher's accuracy", _numbers(runs, _teacher, percent, points)),
        ("energy an image", _numbers(runs, _energy, joules, _relative)),
        ("training time", _numbers(runs, _seconds, duration, _relative)),
    ]
    return [row for row in rows if any(entry.text != "-" for entry in row[1])]


def _words(runs: Sequence[RunReport], fact: str) -> tuple[Entry, ...]:
    texts = ["-" if run.facts[fact] in (None, "") else str(run.facts[fact]) for run in runs]
    return tuple(Entry(text, differs=text != texts[0]) for text in texts)


def _numbers(
    runs: Sequence[RunReport],
    measure: Measure,
    words: Callable[[float], str],
    aside: Callable[..., str],
) -> tuple[Entry, ...]:
    numbers = [measure(run) for run in runs]
    first = numbers[0]
    made = []
    for number in numbers:
        if number is None:
            made.append(Entry("-"))
        elif first is None or number == first:
            made.append(Entry(words(number)))
        else:
            told = aside(number / first if aside is _relative else number - first) if first else ""
            made.append(Entry(words(number), told, True))
    return tuple(made)


def _relative(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "\N{MINUS SIGN}")


def _accuracy(run: RunReport) -> float | None:
    found = run.accuracy
    return float(found.last["accuracy_cumulative"]) if isinstance(found, Accuracy) else None


def _first(run: RunReport) -> float | None:
    found = run.accuracy
    return float(found.rows[0]["accuracy_at_t"]) if isinstance(found, Accuracy) else None


def _teacher(run: RunReport) -> float | None:
    return run.accuracy.teacher if isinstance(run.accuracy, Accuracy) else None


def _energy(run: RunReport) -> float | None:
    return float(run.energy.total["energy_pj"]) if isinstance(run.energy, Energy) else None


def _seconds(run: RunReport) -> float | None:
    found: float | None = run.facts["seconds"]
    return found


def _settings(runs: Sequence[RunReport]) -> list[tuple[str, tuple[Entry, ...]]]:
    """Return the settings that are not the same in all runs."""
    all_keys = dict.fromkeys(key for run in runs for key in run.all_settings)
    rows = []
    for key in all_keys:
        texts = [str(run.all_settings.get(key, "-")) for run in runs]
        if len(set(texts)) > 1 and key not in PLACES:
            rows.append((key, tuple(Entry(text, differs=text != texts[0]) for text in texts)))
    return rows
