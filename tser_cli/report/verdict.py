"""The verdict on a network: whether it learned, how it stands to its teacher, and what it costs.

Made here once, for the terminal, the report page and the model card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tser_cli.report.statistics import CONFIDENCE
from tser_cli.settings.fields import joules

ABOUT_THE_SAME = 0.005  # half a point of accuracy
BEHIND = 10.0  # points: a student that far behind does not stand in for its teacher
EVEN = 0.05  # two energies nearer to each other than this are called equal
SPLITS = {"train": "training"}  # in words, where the name is none


@dataclass(frozen=True)
class BesideAnn:
    """The student and the ANN of its shape under one assumption, in pJ an image."""

    name: str
    student_pj: float
    ann_pj: float

    @property
    def ratio(self) -> float:
        """Return how many times the student's energy the ANN costs; above 1 it is saved."""
        return self.ann_pj / self.student_pj


@dataclass(frozen=True)
class Verdict:
    """What decides, in words; `accuracy` and `energy` are "" where they are not known.

    `guessing`: whether the network is not better than guessing. `beside` then has no comparison:
    what a network that learned nothing saves is no saving. `behind`: by how much it misses its
    teacher, where that is so much that no ratio may stand without it. `fewer`: how few steps are
    enough.
    """

    accuracy: str
    energy: str
    guessing: bool
    beside: tuple[BesideAnn, ...]
    fewer: str = ""
    behind: str = ""

    @property
    def line(self) -> str:
        """Return the verdict in one line."""
        return "; ".join(half for half in (self.accuracy, self.energy) if half)


def verdict(
    last: Mapping[str, Any] | None,
    against: Mapping[str, Any] | None = None,
    split: str = "test",
    at_least: bool = False,
) -> Verdict:
    """Return the verdict on a network.

    `last`: the last row of per_timestep.csv, on images of `split`; `against`: the entry
    `against_ann` of energy.json. None where it is not known. `at_least`: operations were left out.
    """
    known = _accuracy(last, split) if last else Verdict("", "", False, ())
    if not against:
        return known
    same = against["assumptions"]["same"]
    least = "at least " if at_least else ""
    cost = f"{least}{joules(same['snn_pj'], same['ann_pj'])} an image"
    # nothing to compare: nothing was learned or counted, or the network is that ANN itself
    if known.guessing or same["snn_pj"] in (0.0, same["ann_pj"]):
        return replace(known, energy=cost)
    beside = comparisons(against["assumptions"])
    return replace(
        known, energy=f"{cost}: {_cheaper(beside)}", beside=beside, fewer=_fewer(against)
    )


def _accuracy(last: Mapping[str, Any], split: str) -> Verdict:
    right, images, chance = last["correct_cumulative"], last["images"], last.get("chance") or 0.0
    reached, p_chance, p_teacher = right / images, last.get("p_chance"), last.get("p_teacher")
    told = (
        f"{100 * reached:.2f} % ({right:,} of {images:,} {SPLITS.get(split, split)} "
        f"image{'s' if images != 1 else ''} right)"
    )
    if p_chance is not None and p_chance >= 1 - CONFIDENCE:
        told += f", not better than guessing (the largest class is {100 * chance:.2f} % of them)"
        return Verdict(told, "", True, ())
    teacher = last.get("teacher_accuracy")
    if teacher is None:
        return Verdict(told, "", False, ())
    taught, gap = f"its teacher's {100 * teacher:.2f} %", 100 * (reached - teacher)
    apart = f"{abs(gap):.2f} points {'above' if gap > 0 else 'below'} {taught}"
    if gap < -BEHIND:
        return Verdict(f"{told}, {apart}", "", False, (), behind=apart)
    if p_teacher is not None and p_teacher >= 1 - CONFIDENCE:
        apart = f"equal to {taught} within chance"
    return Verdict(f"{told}, {apart}", "", False, ())


def comparisons(cases: Mapping[str, Mapping[str, float]]) -> tuple[BesideAnn, ...]:
    """Return the student beside the ANN of its shape under each assumption, by their names."""
    # only then are both in 32 bits: see `energy.joules.against_ann`
    width = "in 32 bits" if "int8" in cases else "in the same arithmetic"
    # an ANN has no steps: which input it is shown decides what it costs
    plain = f"on the mean frame, {width}" if "frames" in cases else width
    zeros = f"{100 * cases['skipping']['skipped']:.0f} %" if "skipping" in cases else ""
    names = {
        "same": plain,
        "frames": f"on each frame, {width}",
        "skipping": f"{plain}, skipping its zeros ({zeros}, as in the teacher)",
        "memory": f"{plain}, with memory traffic",
        "int8": plain.replace(width, "in 8 bits"),
    }
    return tuple(BesideAnn(names[name], of["snn_pj"], of["ann_pj"]) for name, of in cases.items())


def _cheaper(beside: tuple[BesideAnn, ...]) -> str:
    """Return beside which forms of the same ANN it is cheaper, the plain one first.

    Of the others those are named that say otherwise: one favourable comparison would mislead.
    """
    words = [_word(one.ratio) for one in beside]
    told = f"{words[0]} the same ANN {beside[0].name}"
    others: dict[str, list[str]] = {}
    for word, one in zip(words[1:], beside[1:], strict=True):
        if word != words[0]:
            name = one.name.removeprefix(f"{beside[0].name}, ").split(" (")[0]
            name = name.removeprefix("on the mean frame, ")
            others.setdefault(word, []).append(name)
    if len(beside) > 1 and not others:
        return f"{told}, and by each other way to count"
    return ", ".join([told, *(f"{word} {' and '.join(names)}" for word, names in others.items())])


def _word(ratio: float) -> str:
    if abs(ratio - 1.0) < EVEN:
        return "about as dear as"
    return "cheaper than" if ratio > 1.0 else "dearer than"


def _fewer(against: Mapping[str, Any]) -> str:
    accuracy, spent = against["accuracy"], against["steps_pj"]
    # no accuracies come from a report page, which shows the steps by themselves
    enough = [t for t, reached in enumerate(accuracy) if reached >= accuracy[-1] - ABOUT_THE_SAME]
    t = enough[0] if enough else -1
    if not 0 <= t < len(accuracy) - 1:
        return ""
    steps = "t = 1 alone has" if t == 0 else f"t = 1..{t + 1} have"
    cost = joules(spent[t], against["assumptions"]["same"]["ann_pj"])
    return f"{steps} {100 * accuracy[t]:.2f} % for {cost}; all steps {100 * accuracy[-1]:.2f} %."
