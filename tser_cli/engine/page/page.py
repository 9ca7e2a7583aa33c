"""Make the page of a report: one file of HTML that asks for nothing from anywhere.

All that comes from a run may come from a stranger. The templates escape it, control characters are
made visible, and a content security policy forbids scripts and connections: the page has none.
Figures stand in it as SVG; their colours are variables of the style sheet, so that one drawing
serves light, dark and paper.

First the page and its figures, then its sentences and numbers, then several runs side by side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from xml.etree import ElementTree

from tser_cli.base.errors import escaped
from tser_cli.engine.page import values
from tser_cli.report import figures, words
from tser_cli.report.comparison import Disagreement
from tser_cli.report.lists import accuracy_words, difference_words, interval_words
from tser_cli.report.style import GREY, PALE, PALETTE, SVG, Drawing
from tser_cli.report.verdict import ABOUT_THE_SAME
from tser_cli.report.words import budget_verdict, quantity, times
from tser_cli.settings.fields import joules

TEMPLATES = Path(__file__).with_name("templates")
POLICY = (
    "default-src 'none'; script-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
PARTS = {
    **{"accuracy": "accuracy", "energy": "energy", "layers": "layers", "mistakes": "mistakes"},
    **{"images": "images", "training": "training", "settings": "settings"},
}
# What the colours of a drawing are called in page.css, where light and dark have their own.
COLOURS = {GREY: "--soft", PALE: "--axis"} | {c: f"--s{n}" for n, c in enumerate(PALETTE, 1)}
MOST_TERMS = 24  # of a loss
SHARES = (0.25, 0.45, 0.65, 0.82)  # where the matrix's colour deepens, in parts of the deepest
WORST = 0.3  # share of a class that, taken for one other, has the deepest colour
Drawn = Iterator[tuple[str, Drawing]]


def render(page: values.Page) -> str:
    """Return the page as HTML."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        # a name that is mistyped in a template is an error, not a gap on the page
        undefined=jinja2.StrictUndefined,
        # what comes from outside, control characters too; markup of our own is no plain str
        finalize=lambda value: markupsafe.Markup(escaped(value)) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    environment.tests["missing"] = lambda value: isinstance(value, values.Missing)
    environment.globals |= GLOBALS
    names = [*(run.name for run in page.runs), *(one.name for one in page.ablations)]
    # the links at the top: the parts of a single run, else the runs and ablations
    contents = [("compare", "side by side")] if len(page.runs) > 1 else []
    lettered = enumerate(zip(page.letters, page.runs, strict=True), start=1)
    contents += [(f"r{place}", f"{letter}: {run.title}") for place, (letter, run) in lettered]
    contents += [(f"a{place}", one.name) for place, one in enumerate(page.ablations, start=1)]
    if len(page.runs) == 1 and not page.ablations:
        contents = [(f"r1-{end}", name) for end, name in PARTS.items() if page.runs[0].has(end)]
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        page=page,
        compared=compare_runs(page),
        title=f"{names[0]}{' and others' if len(names) > 1 else ''}: tser report",
        contents=contents,
        heading="h1" if len(names) == 1 else "h2",
        # our own SVG: names from outside were escaped when it was made
        charts={name: markupsafe.Markup(inline(one, name)) for name, one in drawings_of(page)},
        style=markupsafe.Markup(style),
        policy=POLICY,
    )


def inline(drawing: Drawing, name: str) -> str:
    """Return a drawing as an element of the page, in whose SVG no id is used twice."""

    def variable(found: re.Match[str]) -> str:
        return f"var({COLOURS[found[0]]})" if found[0] in COLOURS else found[0]

    root, ids = ElementTree.fromstring(drawing.svg()), dict[str, str]()
    for parent in root.iter():
        parent.tag = parent.tag.removeprefix(f"{{{SVG}}}")
        for sheet in [child for child in parent if child.tag.endswith("}style")]:
            parent.remove(sheet)  # its rules would be the whole page's
        for key, value in list(parent.attrib.items()):
            if key == "style":
                parent.set(key, re.sub("#[0-9a-f]{6}", variable, value))
            # drawings on one page would else share ids, and marks of one take shapes of another
            if key == "id":
                parent.set(key, ids.setdefault(value, f"{name}-{len(ids)}"))
            if key.endswith("}href"):  # HTML knows no prefixes
                del parent.attrib[key]
                parent.set("href", "#" + ids.setdefault(value[1:], f"{name}-{len(ids)}"))
    # between these widths a figure grows with its card; its texts stay legible on a phone
    width = float(root.get("viewBox", "").split()[2])
    scale = f"min-width: {0.88 * width:.0f}px; max-width: {1.25 * width:.0f}px"
    shown = {"viewBox": root.get("viewBox", ""), "style": scale, "role": "img"}
    root.attrib = {**shown, "aria-labelledby": f"{name}-title"}
    return ElementTree.tostring(root, encoding="unicode")


def drawings_of(page: values.Page) -> Drawn:
    """Draw the figures of a page; ids begin with the part they belong to: r1, a1, compare."""
    for place, run in enumerate(page.runs, start=1):
        yield from ((f"r{place}-{name}", drawing) for name, drawing in _of_run(run))
    for place, ablation in enumerate(page.ablations, start=1):
        yield from ((f"a{place}-{name}", one) for name, one in ablation.drawings.items())
    if len(page.runs) > 1:
        yield from ((f"compare-{name}", drawing) for name, drawing in _of_all(page))


def _of_run(run: values.RunReport) -> Drawn:
    method = run.facts.method
    # one step alone is no curve: a tile says it
    if isinstance(run.accuracy, values.Accuracy) and len(run.accuracy.steps) > 1:
        yield "accuracy", figures.accuracy(run.accuracy.steps, run.accuracy.teacher, method)
    if isinstance(run.energy, values.Energy):
        if any(row.firing_rate is not None for row in run.energy.layers):
            yield "firing", figures.firing(run.energy.layers)
        yield "layers", figures.by_layer(run.energy.layers)
    # energies are drawn by their logarithms, and 0 has none
    compared = [one for one in run.pairs if one.sound and one.in_range]
    sound = [(one.name, one.student_pj, one.other_pj) for one in compared]
    if sound:
        yield "beside", figures.beside_others(sound)
    if isinstance(run.tradeoff, values.Tradeoff):
        of = run.tradeoff
        yield "tradeoff", figures.tradeoff(of.steps, of.teacher, of.exits, of.ann_pj, method)
    if isinstance(run.curves, values.Curves):
        for end, name in curves_of(run.curves).items():
            of_name = {
                "training": "train_accuracy",
                "its teacher": "teacher_train_accuracy",
                "held out": "validation_accuracy",
            }
            found = {
                key: [(epoch, 100 * value) for epoch, value in run.curves.series[column]]
                for key, column in of_name.items()
                if column in run.curves.series
            }
            if end != "accuracies":
                found = {name: list(run.curves.series[name])}
            yield end, figures.over_epochs(found, name)


def curves_of(curves: values.Curves) -> dict[str, str]:
    """Return the names of the figures over the epochs, by the ends of their ids."""
    names = [name for name in (*curves.terms[:MOST_TERMS], "lr") if name in curves.series]
    # numbered: the name of a term may be anything, an id may not
    listed = {f"term{n}": name for n, name in enumerate(names)}
    accuracy = {"train_accuracy", "validation_accuracy"} & curves.series.keys()
    return {**listed, **({"accuracies": figures.ACCURACY} if accuracy else {})}


def _of_all(page: values.Page) -> Drawn:
    named = list(zip(page.letters, page.runs, strict=True))
    steps = {n: run.accuracy.steps for n, run in named if isinstance(run.accuracy, values.Accuracy)}
    spent = {n: run.tradeoff.steps for n, run in named if isinstance(run.tradeoff, values.Tradeoff)}
    curves = {n: run.curves.series for n, run in named if isinstance(run.curves, values.Curves)}
    losses = {n: series["loss"] for n, series in curves.items() if "loss" in series}
    if len(steps) > 1:
        yield "accuracy", figures.accuracies(steps)
    if len(spent) > 1:
        yield "tradeoff", figures.tradeoffs(spent)
    if len(losses) > 1:
        yield "loss", figures.over_epochs(losses, "loss", narrow=False)


def shade(images: int, of_class: int, right: bool) -> str:
    """Return the class of a cell of the confusion matrix: "right0" to "wrong4", "" for none."""
    part = images / of_class / (1.0 if right else WORST) if images else 0.0
    level = sum(part > share for share in SHARES)
    return f"{'right' if right else 'wrong'}{level}" if images else ""


MOST_LINES = 8


def percent(fraction: float | None, digits: int = 2) -> str:
    """0.9534 -> "95.34 %", with a fixed space; None -> "-"."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def points(fraction: float, less: float = 0.0) -> str:
    """-0.0111 -> "−1.11 points", with a true minus sign; `less` is taken off."""
    return f"{100 * (fraction - less):+.2f} points".replace("-", "\N{MINUS SIGN}")


def reach(interval: tuple[float, float] | None) -> str:
    """Return the interval of a difference: "−0.84 to +0.17", "" without one."""
    return interval_words(interval).replace("-", "\N{MINUS SIGN}").replace(" .. ", " to ")


def duration(seconds: float | None) -> str:
    """37.2 -> "37 s"; None -> "-"."""
    return "-" if seconds is None else words.duration(seconds)


def told(ratio: float) -> str:
    """Return how two energies compare: "1.8 times more"; "-" where one of them is 0."""
    return times(ratio) if 0.0 < ratio < math.inf else "-"


def summary(run: values.RunReport) -> list[str]:
    """Return what a reader in a hurry must know, a sentence or two each."""
    lines = [f"{run.verdict.line}."] if run.verdict.line else []
    if isinstance(run.accuracy, values.Accuracy):
        lines += _of_first_step(run, run.accuracy)
    verdict = _budget_verdict(run.facts)
    if verdict:
        lines.append(f"It was trained to an energy budget: {verdict}.")
    if isinstance(run.tradeoff, values.Tradeoff):
        # the cheapest early exit that costs at most half a point; not where the first step is
        # enough, which another sentence says, nor where it saves next to nothing
        full, first = run.tradeoff.steps[-1], run.tradeoff.steps[0]
        least = full.accuracy - ABOUT_THE_SAME
        kept = [point for point in run.tradeoff.exits if point.accuracy >= least > first.accuracy]
        best = min(kept, key=lambda point: point.energy_pj, default=full)
        if isinstance(best, values.ExitPoint) and best.energy_pj <= 0.98 * full.energy_pj:
            lines.append(
                f"Images that stop once they are decided (confidence {best.threshold:g}) reach "
                f"{percent(best.accuracy)} for {joules(best.energy_pj, run.tradeoff.ann_pj)}, "
                f"{100 * best.energy_pj / full.energy_pj:.0f} % of the energy. The threshold was "
                "chosen on these images, which flatters it."
            )
    if isinstance(run.mistakes, values.Mistakes) and run.mistakes.pairs:
        worst = run.mistakes.pairs[0]
        lines.append(
            f"Its most frequent confusion: {worst.true} classified as {worst.predicted} "
            f"({words.counted(worst.images, 'image')}, {percent(worst.share, 0)} of that class)."
        )
    return lines


def _of_first_step(run: values.RunReport, accuracy: values.Accuracy) -> Iterator[str]:
    if accuracy.last.t > 1:
        share = ""
        if isinstance(run.energy, values.Energy) and run.energy.energy_pj and run.energy.steps_pj:
            first_pj = 100 * run.energy.steps_pj[0] / run.energy.energy_pj
            share = f", for {first_pj:.0f} % of the energy" if first_pj else ""
        yield f"The first step alone gives {percent(accuracy.steps[0].accuracy_at_t)}{share}."


def _budget_verdict(facts: values.RunFacts) -> str:
    """Return "2.98 µJ of 3 µJ: kept", "" for a run without a budget."""
    energy_pj, budget_pj = facts.energy_pj, facts.energy_budget_pj
    return budget_verdict(energy_pj, budget_pj) if energy_pj and budget_pj else ""


@dataclass(frozen=True)
class Tile:
    """A figure in large type, with its name and what must be known of it."""

    name: str
    text: str
    aside: str


def tiles(run: values.RunReport) -> Iterator[Tile]:
    """Return the figures that stand at the top of a run."""
    if isinstance(run.accuracy, values.Accuracy):
        last, teacher = run.accuracy.last, run.accuracy.teacher
        low, high = last.interval
        of = f"{last.right:,} of {last.images:,} test images; 95\N{NO-BREAK SPACE}% interval"
        yield Tile("accuracy", percent(last.accuracy), f"{of} {100 * low:.1f} to {100 * high:.1f}")
        if teacher is not None and run.kind == "student":
            gap = points(last.accuracy - teacher)
            yield Tile("its teacher", percent(teacher), f"student: {gap}")
    if isinstance(run.energy, values.Energy):
        verdict = _budget_verdict(run.facts)
        aside = f"budget: {verdict}" if verdict else f"arithmetic alone, {run.energy.profile}"
        spent = joules(run.energy.energy_pj, run.energy.ann_energy_pj)
        yield Tile("energy an image", spent, aside)
        ratios = [pair.ratio for pair in run.pairs if pair.in_range and pair.sound]
        if ratios:
            ends = dict.fromkeys((times(max(ratios)), times(min(ratios))))
            aside = run.verdict.behind or "by what one compares and counts"
            yield Tile("beside the same ANN", " …\n".join(ends), aside)
    if run.facts.seconds is not None:
        aside = words.counted(int(run.facts.epochs), "epoch") if run.facts.epochs else ""
        on = f" on {run.facts.device}" if run.facts.device else ""
        yield Tile("training", duration(run.facts.seconds), f"{aside}{on}")


def ablation_lines(found: values.AblationReport) -> list[str]:
    """Return what a reader in a hurry must know of an ablation."""
    lines = []
    for cell in () if isinstance(found.cells, values.Missing) else found.cells:
        of = cell.statistics
        if of.interval is not None and of.difference is not None:
            verdicts = {
                True: "resolved",
                False: "not resolved",
                None: "no verdict below five pairs",
            }
            lines.append(
                f"{cell.label} against the baseline: {points(of.difference)}, "
                f"95\N{NO-BREAK SPACE}% interval {reach(of.interval)}, n = {of.pairs}: "
                # after Holm's correction: of many comparisons some would else be resolved by chance
                f"{verdicts[of.resolved_holm]}."
            )
    if len(lines) > MOST_LINES:
        more = f"{len(lines) - MOST_LINES} more comparisons are in the table."
        lines = [*lines[:MOST_LINES], more]
    if found.teachers:
        ends = sorted({percent(found.teachers[0]), percent(found.teachers[-1])})
        lines.append(f"Teachers reach {' to '.join(ends)}.")
    return lines


# Where a run lies, and what numbers its start, is no setting that two runs differ in.
PLACES = ("model.teacher", "data.dir")


@dataclass(frozen=True)
class InWords:
    """A run's value in words; `aside` compares it with the first run's; `differs` from that one."""

    text: str
    aside: str = ""
    differs: bool = False


Lines = tuple[tuple[str, tuple[InWords, ...]], ...]


@dataclass(frozen=True)
class SideBySide:
    """Runs side by side: rows of a name and a value a run, and pairs by the other one's letter."""

    measures: Lines
    settings: Lines
    pairs: tuple[tuple[str, Disagreement], ...]


def compare_runs(page: values.Page) -> SideBySide | None:
    """Return the runs of a page side by side; None where there are fewer than two."""
    runs = page.runs
    if len(runs) < 2:
        return None
    by_name = {run.name: letter for run, letter in zip(runs, page.letters, strict=True)}

    def known(get: Callable[[values.Accuracy], float | None]) -> list[float | None]:
        found = [run.accuracy for run in runs]
        return [get(one) if isinstance(one, values.Accuracy) else None for one in found]

    energies = [run.energy for run in runs]
    spent = [one.energy_pj if isinstance(one, values.Energy) else None for one in energies]
    largest = max((pj for pj in spent if pj is not None), default=None)
    measures = (
        ("network", _words([run.facts.model for run in runs])),
        ("method", _words([run.facts.method for run in runs])),
        ("time steps", _words([run.facts.timesteps for run in runs])),
        ("accuracy, all steps", _numbers(known(lambda one: one.last.accuracy), percent, points)),
        (
            "accuracy, first step alone",
            _numbers(known(lambda one: one.steps[0].accuracy_at_t), percent, points),
        ),
        ("teacher's accuracy", _numbers(known(lambda one: one.teacher), percent, points)),
        ("energy an image", _numbers(spent, partial(joules, beside_pj=largest), _relative)),
        ("training time", _numbers([run.facts.seconds for run in runs], duration, _relative)),
    )
    keys = dict.fromkeys(key for run in runs for key in run.all_settings if key not in PLACES)
    settings = [(key, _words([run.all_settings.get(key) for run in runs])) for key in keys]
    return SideBySide(
        tuple(row for row in measures if any(entry.text != "-" for entry in row[1])),
        tuple(row for row in settings if any(entry.differs for entry in row[1])),
        tuple((by_name.get(other, ""), apart) for other, apart in page.same_images),
    )


def _words(stated: Sequence[str | float | None]) -> tuple[InWords, ...]:
    texts = ["-" if value in (None, "") else str(value) for value in stated]
    return tuple(InWords(text, differs=text != texts[0]) for text in texts)


def _numbers(
    numbers: Sequence[float | None],
    in_words: Callable[[float], str],
    aside: Callable[[float, float], str],
) -> tuple[InWords, ...]:
    first, made = numbers[0], []
    for number in numbers:
        if number is None:
            made.append(InWords("-"))
        # nothing to compare with, or no difference: not marked
        elif first is None or number == first:
            made.append(InWords(in_words(number)))
        else:
            made.append(InWords(in_words(number), aside(number, first), True))
    return tuple(made)


def _relative(number: float, first: float) -> str:
    told = f"{100 * (number / first - 1):+.0f} %" if first else ""
    return told.replace("-", "\N{MINUS SIGN}")


FILTERS = {
    "percent": percent,
    "duration": duration,
    "told": told,
    "joules": joules,
    "quantity": quantity,
    "accuracy_words": accuracy_words,
    "difference_words": difference_words,
    "reach": reach,
}


GLOBALS = {
    "tiles": tiles,
    "summary": summary,
    "ablation_lines": ablation_lines,
    "curves_of": curves_of,
    "letter_colours": {one: f"c{1 + n % len(PALETTE)}" for n, one in enumerate(ascii_uppercase)},
    "shade": shade,
}
