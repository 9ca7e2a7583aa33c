"""Make the page of a report: one file of HTML that asks for nothing from anywhere.

All that comes from a run may come from a stranger. The template escapes it, control characters are
made visible, and data for the charts cannot end the script that holds it. A content security policy
lets the browser run the page's own scripts alone, by their hashes, and open no connection.

The sentences and figures of a report page.

Several runs of a report page side by side: what they reached, and which settings differ.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tser_cli.base.errors import visible
from tser_cli.engine.page import page_charts
from tser_cli.engine.page.chart_library import NOTICE, library
from tser_cli.engine.page.chart_parts import CONFIG, SERIES
from tser_cli.engine.page.values import (
    AblationReport,
    Accuracy,
    CellReport,
    Duel,
    Energy,
    Missing,
    Mistakes,
    Page,
    Pair,
    RunReport,
    Tradeoff,
)
from tser_cli.report import words
from tser_cli.report.comparison import statistics_in
from tser_cli.report.lists import accuracy_words, difference_words, interval_words
from tser_cli.report.words import ABOUT_THE_SAME, budget_verdict, quantity, times
from tser_cli.settings.fields import joules


def render(page: Page) -> str:
    """Return the page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    environment.tests["missing"] = lambda value: isinstance(value, Missing)
    environment.globals |= {**GLOBALS, "colour_class": colour_class}
    charts = page_charts.charts_of(page)
    scripts = {"library": library(), "program": _text("page.js")}
    return environment.get_template("page.html").render(
        page=page,
        compared=compare_runs(page),
        title=_title(page),
        contents=_contents(page),
        heading="h1" if len(page.runs) + len(page.ablations) == 1 else "h2",
        charts=charts,
        data=_finite({"config": CONFIG, "charts": charts}),
        style=_own(_text("page.css")),
        scripts={name: _own(text) for name, text in scripts.items()},
        policy=_policy(list(scripts.values())),
    )


def _title(page: Page) -> str:
    names = [*(run.name for run in page.runs), *(one.name for one in page.ablations)]
    return f"{names[0]}{' and others' if len(names) > 1 else ''}: tser report"


def _contents(page: Page) -> list[tuple[str, str]]:
    """Return the links at the top: the parts of a single run, else the runs and ablations."""
    if len(page.runs) == 1 and not page.ablations:
        return [(f"r1-{end}", name) for end, name in PARTS.items() if page.runs[0].has(end)]
    beside = [("compare", "side by side")] if len(page.runs) > 1 else []
    runs = [
        (f"r{place}", f"{letter}: {run.title}")
        for place, (letter, run) in enumerate(zip(page.letters, page.runs, strict=True), start=1)
    ]
    ablations = [(f"a{place}", one.name) for place, one in enumerate(page.ablations, start=1)]
    return [*beside, *runs, *ablations]


def colour_class(letter: str) -> str:
    """Return the class of a run's letter: that of its colour in the charts."""
    return f"c{1 + (ord(letter) - ord('A')) % len(SERIES)}"


def _shown(value: Any) -> Any:
    """Make control characters of what the template shows visible; markup of its own stays."""
    return visible(value) if type(value) is str else value


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _own(text: str) -> Any:
    """Return text of ours that may stand in the page as it is."""
    import markupsafe

    assert "</script" not in text.lower() and "</style" not in text.lower() and "<!--" not in text
    return markupsafe.Markup(text)


def _policy(scripts: list[str]) -> str:
    """Return a content security policy that allows these inline scripts and pictures inside."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _finite(value: Any) -> Any:
    """Return data for JSON: texts visible, and null for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not -1e300 < value < 1e300:
        return None
    return visible(value) if isinstance(value, str) else value


MOST_LINES = 8


def percent(fraction: float | None, digits: int = 2) -> str:
    """0.9534 -> "95.34 %", with a fixed space; None -> "-"."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def points(fraction: float) -> str:
    """-0.0111 -> "−1.11 points", with a true minus sign."""
    return f"{100 * fraction:+.2f} points".replace("-", "\N{MINUS SIGN}")


def reach(row: Mapping[str, Any], of: str = "difference") -> str:
    """Return the interval of a difference: "−0.84 to +0.17", "" without one."""
    found = statistics_in(row)
    words = interval_words(found.interval if of == "difference" else found.two_way)
    return words.replace("-", "\N{MINUS SIGN}").replace(" .. ", " to ")


def duration(seconds: float | None) -> str:
    """37.2 -> "37 s"; None -> "-"."""
    return "-" if seconds is None else words.duration(seconds)


def told(ratio: float) -> str:
    """Return how two energies compare: "1.8 times more"; "-" where one of them is 0."""
    return times(ratio) if 0.0 < ratio < math.inf else "-"


def energy_range(duels: Sequence[Duel]) -> str:
    """Return how the student compares with an ANN of its shape, from the best case to the worst.

    "11.0 times less … 1.8 times more"; "" without a comparison.
    """
    ratios = sorted(duel.ratio for duel in duels if duel.in_range and duel.sound)
    if not ratios:
        return ""
    best, worst = times(ratios[-1]), times(ratios[0])
    return best if best == worst else f"{best} … {worst}"


def summary(run: RunReport) -> list[str]:
    """Return what a reader in a hurry must know, a sentence or two each."""
    found: Iterator[str] = iter(())
    if isinstance(run.accuracy, Accuracy):
        found = _of_accuracy(run, run.accuracy)
    lines = list(found)
    verdict = _budget_verdict(run)
    if verdict:
        lines.append(f"It was trained to an energy budget: {verdict}.")
    lines += run.headline
    if isinstance(run.tradeoff, Tradeoff):
        lines += _of_exits(run.tradeoff)
    if isinstance(run.mistakes, Mistakes) and run.mistakes.pairs:
        lines.append(_of_mistakes(run.mistakes.pairs))
    return lines


def _of_accuracy(run: RunReport, accuracy: Accuracy) -> Iterator[str]:
    last, steps = accuracy.last, accuracy.last["t"]
    after = f"After {steps} time steps " if steps > 1 else ""
    low, high = (percent(last[f"{end}_cumulative"], 1) for end in ("low", "high"))
    yield (
        f"{after}{last['correct_cumulative']:,} of {last['images']:,} test images are right: "
        f"{percent(last['accuracy_cumulative'])} (95\N{NO-BREAK SPACE}% interval over images: "
        f"{low} to {high})."
    )
    if accuracy.teacher is not None and run.kind == "student":
        gap = points(last["accuracy_cumulative"] - accuracy.teacher)
        yield (
            f"Its teacher{named(run.facts['teacher'])} reaches {percent(accuracy.teacher)}; the "
            f"student is {gap} from it."
        )
    first = accuracy.rows[0]
    if steps > 1:
        share = _share_of_first(run.energy)
        yield (
            f"The first step alone gives {percent(first['accuracy_at_t'])}"
            + (f", for {share:.0f} % of the energy." if share else ".")
        )


def _budget_verdict(run: RunReport) -> str:
    """Return "2.98 µJ of 3 µJ: kept", "" for a run without a budget."""
    energy_pj, budget_pj = run.facts["energy_pj"], run.facts["energy_budget_pj"]
    return budget_verdict(energy_pj, budget_pj) if energy_pj and budget_pj else ""


def named(name: str) -> str:
    """Return a name to follow a noun: "resnet34" -> ", resnet34,"; "" stays empty."""
    return f", {name}," if name else ""


def _share_of_first(energy: Energy | Missing) -> float:
    if isinstance(energy, Missing) or not energy.total["energy_pj"]:
        return 0.0
    return 100 * float(energy.totals[0]["energy_pj"] / energy.total["energy_pj"])


def _of_exits(tradeoff: Tradeoff) -> list[str]:
    """Return the cheapest early exit that costs at most half a point; nothing where none saves."""
    full = tradeoff.steps[-1]
    if tradeoff.steps[0]["accuracy"] >= full["accuracy"] - ABOUT_THE_SAME:
        return []  # the first step is enough, which is told elsewhere
    kept = [row for row in tradeoff.exits if row["accuracy"] >= full["accuracy"] - ABOUT_THE_SAME]
    best = min(kept, key=lambda row: row["energy_pj"], default=None)
    if best is None or best["energy_pj"] > 0.98 * full["energy_pj"]:
        return []
    return [
        f"Images that stop once they are decided (confidence {best['threshold']:g}) reach "
        f"{percent(best['accuracy'])} for {joules(best['energy_pj'])}, "
        f"{100 * best['energy_pj'] / full['energy_pj']:.0f} % of the energy. The threshold was "
        "chosen on these images, which flatters it."
    ]


def _of_mistakes(pairs: Sequence[Mapping[str, Any]]) -> str:
    worst = pairs[0]
    images = "image" if worst["images"] == 1 else "images"
    return (
        f"Its most frequent confusion: {worst['true']} taken for {worst['predicted']} "
        f"({worst['images']} {images}, {percent(worst['share'], 0)} of that class)."
    )


@dataclass(frozen=True)
class Tile:
    """A figure in large type, with its name and what must be known of it."""

    name: str
    text: str
    aside: str


def tiles(run: RunReport) -> list[Tile]:
    """Return the figures that stand at the top of a run."""
    return [*_accuracy_tiles(run), *_energy_tiles(run), *_training_tile(run)]


def _accuracy_tiles(run: RunReport) -> Iterator[Tile]:
    if isinstance(run.accuracy, Missing):
        return
    last, teacher = run.accuracy.last, run.accuracy.teacher
    interval = f"{100 * last['low_cumulative']:.1f} to {100 * last['high_cumulative']:.1f}"
    yield Tile(
        "accuracy",
        percent(last["accuracy_cumulative"]),
        f"{last['correct_cumulative']:,} of {last['images']:,} test images; "
        f"95\N{NO-BREAK SPACE}% interval {interval}",
    )
    if teacher is not None and run.kind == "student":
        gap = points(last["accuracy_cumulative"] - teacher)
        yield Tile("its teacher", percent(teacher), f"student: {gap}")


def _energy_tiles(run: RunReport) -> Iterator[Tile]:
    if isinstance(run.energy, Missing):
        return
    verdict = _budget_verdict(run)
    aside = f"budget: {verdict}" if verdict else f"arithmetic alone, {run.energy.profile}"
    yield Tile("energy an image", joules(run.energy.total["energy_pj"]), aside)
    found = energy_range(run.duels)
    if found:
        lines = found.replace(" … ", " …\n")
        yield Tile("beside the same ANN", lines, "by what one compares and counts")


def _training_tile(run: RunReport) -> Iterator[Tile]:
    seconds, epochs, device = (run.facts[name] for name in ("seconds", "epochs", "device"))
    if seconds is None:
        return
    aside = f"{epochs} epochs" if epochs else ""
    yield Tile("training", duration(seconds), f"{aside} on {device}" if device else aside)


def tradeoff_note(found: Tradeoff) -> str:
    """Return how to read the chart of accuracy against energy."""
    early = " The line in orange is early exit, a point a threshold." if found.exits else ""
    measured = f" Measured on {found.images:,} images." if found.images else ""
    return f"Blue: the steps up to t together.{early}{measured}"


def ablation_lines(found: AblationReport) -> list[str]:
    """Return what a reader in a hurry must know of an ablation."""
    if isinstance(found.cells, Missing):
        return []
    compared = [cell for cell in found.cells if cell.row["difference_low"] is not None]
    lines = [_difference(cell) for cell in compared[:MOST_LINES]]
    if len(compared) > MOST_LINES:
        lines.append(f"{len(compared) - MOST_LINES} more comparisons are in the table.")
    if found.teachers:
        ends = sorted({percent(found.teachers[0]), percent(found.teachers[-1])})
        lines.append(f"Teachers reach {' to '.join(ends)}.")
    return lines


def _difference(cell: CellReport) -> str:
    verdicts = {1: "resolved", 0: "not resolved", None: "no verdict below five pairs"}
    verdict = verdicts.get(cell.row["resolved_holm"], "no verdict")
    return (
        f"{cell.label} against the baseline: {points(cell.row['difference_mean'])}, "
        f"95\N{NO-BREAK SPACE}% interval {reach(cell.row)}, n = {cell.row['pairs']}: "
        f"{verdict}."
    )


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


TEMPLATES = Path(__file__).with_name("templates")


PARTS = {
    **{"accuracy": "accuracy", "energy": "energy", "layers": "layers", "mistakes": "mistakes"},
    **{"images": "images", "training": "training", "settings": "settings"},
}


FILTERS = {
    "percent": percent,
    "duration": duration,
    "told": told,
    "joules": joules,
    "quantity": quantity,
    "accuracy_words": lambda row: accuracy_words(statistics_in(row)),
    "difference_words": lambda row: difference_words(statistics_in(row)),
    "reach": reach,
}


GLOBALS = {
    "tiles": tiles,
    "summary": summary,
    "named": named,
    "tradeoff_note": tradeoff_note,
    "ablation_lines": ablation_lines,
    "curves_of": page_charts.curves_of,
    "notice": NOTICE,
}
