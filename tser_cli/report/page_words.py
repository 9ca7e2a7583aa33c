"""The sentences and figures of a report page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tser_cli.quantities import joules
from tser_cli.report import console
from tser_cli.report.ablation import interval_words
from tser_cli.report.energy_report import ABOUT_THE_SAME, budget_verdict, times
from tser_cli.report.page_values import (
    AblationReport,
    Accuracy,
    CellReport,
    Duel,
    Energy,
    Missing,
    Mistakes,
    RunReport,
    Tradeoff,
)

MOST_LINES = 8


def percent(fraction: float | None, digits: int = 2) -> str:
    """0.9534 -> "95.34 %", with a fixed space; None -> "-"."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def points(fraction: float) -> str:
    """-0.0111 -> "−1.11 points", with a true minus sign."""
    return f"{100 * fraction:+.2f} points".replace("-", "\N{MINUS SIGN}")


def reach(row: Mapping[str, Any], of: str = "difference") -> str:
    """Return the interval of a difference: "−0.84 to +0.17", "" without one."""
    return interval_words(row, of).replace("-", "\N{MINUS SIGN}").replace(" .. ", " to ")


def duration(seconds: float | None) -> str:
    """37.2 -> "37 s"; None -> "-"."""
    return "-" if seconds is None else console.duration(seconds)


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
