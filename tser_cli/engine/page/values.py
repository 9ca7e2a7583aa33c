"""What a report page shows, as plain values, and nothing of how it looks.

`tser_cli.engine.page.gather` finds them out; `tser_cli.engine.page.page` makes the page of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Missing:
    """A part that can't be shown, and why in words."""

    why: str


@dataclass(frozen=True)
class Accuracy:
    """Accuracy at each time step on the test images.

    `rows`: those of per_timestep.csv, with 95 % intervals over the images: `low_at_t`, `high_at_t`,
    `low_cumulative`, `high_cumulative`. `teacher`: the teacher's accuracy, None without one.
    """

    rows: Rows
    teacher: float | None

    @property
    def last(self) -> Mapping[str, Any]:
        """Return the row of the last step."""
        return self.rows[-1]


@dataclass(frozen=True)
class Curves:
    """The rows of metrics.csv; `terms` are the columns that are terms of the loss."""

    rows: Rows
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Mistakes:
    """Which test images were taken for what.

    `confusion_KK`: images by true and predicted class after all steps; None where there are too
    many classes to draw. `pairs`: the most frequent confusions: `true`, `predicted`, `images`,
    `share` (of the images of the true class). `by_class`: `name`, `images`, `wrong`, the images
    that are wrong at each of `steps` alone, in their order, and `wrong_in_the_end`. `left_out`:
    classes that have no row, those with the smallest share of errors.
    """

    classes: tuple[str, ...]
    confusion_KK: tuple[tuple[int, ...], ...] | None
    pairs: Rows
    by_class: Rows
    steps: tuple[int, ...]
    left_out: int = 0

    @property
    def largest(self) -> float:
        """Return the largest share of a class that a step alone, or all together, get wrong."""
        shares = [
            max(*row["wrong"], row["wrong_in_the_end"]) / row["images"] for row in self.by_class
        ]
        return max(shares, default=0.0)


@dataclass(frozen=True)
class Energy:
    """Operations and energy of a student, means per image.

    `layers`: the rows of energy.csv of each layer and step; `whole`: of each layer over all steps;
    `totals`: of all layers at each step; `total`: of all layers over all steps.
    """

    profile: str
    layers: Rows
    whole: Rows
    totals: Rows
    total: Mapping[str, Any]


@dataclass(frozen=True)
class Duel:
    """The energy of the student and of another network, in pJ an image, counted in one way.

    `how`: what is counted, and by whose figures. `in_range`: whether the range that the summary
    gives is over this comparison too.
    """

    name: str
    student_pj: float
    other_pj: float
    how: str
    in_range: bool = True

    @property
    def ratio(self) -> float:
        """Return how many times the student's energy the other one costs; above 1 it is saved."""
        return self.other_pj / self.student_pj if self.student_pj else math.inf

    @property
    def sound(self) -> bool:
        """Return whether both energies are above 0, so that they can be compared."""
        return self.student_pj > 0 and self.other_pj > 0


@dataclass(frozen=True)
class Tradeoff:
    """Accuracy against energy.

    `steps`: `t`, `energy_pj` of the steps up to t, `accuracy` of their average. `exits`: the rows
    of early_exit.csv, in the order of their energy, () without. `teacher`: its energy in pJ and its
    accuracy. `ann_pj`: the energy of the ANN of the same shape, whose accuracy is not known.
    `images`: on how many it was measured for this page, 0 where that is from the run's tables.
    """

    steps: Rows
    exits: Rows
    teacher: tuple[float, float] | None
    ann_pj: float | None
    images: int = 0


@dataclass(frozen=True)
class Answer:
    """What a network answered for an image at time step t alone, and how sure it was."""

    t: int
    name: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class Picture:
    """A test image as a data URI, its class, and the answers; `final` is of all steps together."""

    source: str
    index: int
    size: tuple[int, int]
    label: str
    answers: tuple[Answer, ...]
    final: Answer


@dataclass(frozen=True)
class Gallery:
    """Errors, the most confident first, and right answers, the least confident first.

    `errors`: how many of the `images` that were looked at are wrong.
    """

    wrong: tuple[Picture, ...]
    right: tuple[Picture, ...]
    errors: int
    images: int


@dataclass(frozen=True)
class Setting:
    """A setting of a run that is not tser's default; `default` is None where there is none."""

    key: str
    value: Any
    default: Any


@dataclass(frozen=True)
class RunReport:
    """All that the page says of one run.

    `title` says what it is, `facts` are labelled values in words, and `said` what stands in the
    way of a complete report, as that the run is not finished. `headline`: what decides about the
    energy, in two sentences.
    """

    name: str
    folder: str
    title: str
    kind: str
    state: str
    said: tuple[str, ...]
    facts: Mapping[str, Any]
    accuracy: Accuracy | Missing
    curves: Curves | Missing
    mistakes: Mistakes | Missing
    energy: Energy | Missing
    headline: tuple[str, ...]
    duels: tuple[Duel, ...]
    tradeoff: Tradeoff | Missing
    gallery: Gallery | Missing
    all_settings: Mapping[str, Any]
    settings: tuple[Setting, ...] | Missing
    environment: Mapping[str, str] | Missing
    commands: tuple[str, ...]

    def has(self, part: str) -> bool:
        """Return whether the page has a part by this name: an ANN has no energy of spikes."""
        if part == "layers":
            return isinstance(self.energy, Energy)
        return part not in ("energy", "tradeoff") or self.kind == "student"


@dataclass(frozen=True)
class Pair:
    """Two runs on the same test images: how many each alone has right, and McNemar's p-value."""

    first: str
    other: str
    only_first: int
    only_other: int
    p_value: float


@dataclass(frozen=True)
class CellReport:
    """A cell of an ablation: its varied settings as a label, and its statistics.

    `row`: that of summary.csv. `accuracy` (percent), `difference` (to the baseline, in points) and
    `energy_pj` hold a value for each seed; `intervals` the 95 % interval of the mean of each, None
    below two values. `at_t`: accuracy of each step alone in percent, `t`, `mean`, `low`, `high`.
    """

    label: str
    row: Mapping[str, Any]
    accuracy: tuple[float, ...]
    difference: tuple[float, ...]
    energy_pj: tuple[float, ...]
    intervals: Mapping[str, tuple[float, float] | None]
    at_t: Rows


@dataclass(frozen=True)
class AblationReport:
    """All that the page says of one ablation.

    `axes`: the short names of the varied settings, by their columns. `runs`: the rows of
    ablation.csv. `teachers`: the accuracies of the teachers, as fractions. `shared`: where the runs
    come from, as far as all agree.
    """

    name: str
    folder: str
    axes: Mapping[str, str]
    measure: str
    said: tuple[str, ...]
    teachers: tuple[float, ...]
    cells: tuple[CellReport, ...] | Missing
    runs: Rows
    shared: Mapping[str, str]
    commands: tuple[str, ...]

    def has(self, part: str) -> bool:
        """Return whether the page has a part by this name: all of them."""
        return True


@dataclass(frozen=True)
class Page:
    """A whole page: runs, ablations, and pairs of runs; `version` is tser's."""

    runs: tuple[RunReport, ...]
    ablations: tuple[AblationReport, ...]
    pairs: tuple[Pair, ...]
    version: str

    @property
    def letters(self) -> str:
        """Return a letter for each run."""
        return ascii_uppercase[: len(self.runs)]
