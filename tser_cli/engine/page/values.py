"""What a report page shows, as plain values, and nothing of how it looks.

`tser_cli.engine.page.gather` finds them out; `tser_cli.engine.page.page` makes the page of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from tser_cli.report.comparison import CellStatistics, Disagreement
from tser_cli.report.figures import EnergyPoint, LayerEnergy, Series, StepAccuracy
from tser_cli.report.style import Drawing
from tser_cli.report.verdict import Verdict


@dataclass(frozen=True)
class Missing:
    """A part that can't be shown, and why in words."""

    # Instead of None: what is missing is said, on the page and by the command.
    why: str


@dataclass(frozen=True)
class MeasuredStep(StepAccuracy):
    """A row of per_timestep.csv: loss, entropy and confidence are those of step t alone."""

    loss: float | None = None
    entropy: float | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """Accuracy at each time step on the test images; `teacher`: its accuracy, None without one.

    `row`: the last row of per_timestep.csv.
    """

    steps: tuple[MeasuredStep, ...]
    teacher: float | None
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> MeasuredStep:
        """Return the last step."""
        return self.steps[-1]


@dataclass(frozen=True)
class Curves:
    """The columns of metrics.csv that hold numbers; `terms` are those that the loss is made of."""

    series: Mapping[str, Series]
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Confusion:
    """How many images of the class `true` were taken for another, and their share of the class."""

    true: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True)
class ClassErrors:
    """The wrong images of a class: at some steps alone, in their order, and after all steps."""

    name: str
    images: int
    wrong: tuple[int, ...]
    wrong_in_the_end: int
    taken_for: str


@dataclass(frozen=True)
class Mistakes:
    """Which test images were taken for what.

    `confusion_KK`: images by true and predicted class after all steps; None where there are too
    many classes to draw. `pairs`: the most frequent confusions. `steps`: those that each of
    `by_class` has an entry of. `left_out`: classes that have no row, those with the smallest share
    of errors.
    """

    classes: tuple[str, ...]
    confusion_KK: tuple[tuple[int, ...], ...] | None
    pairs: tuple[Confusion, ...]
    by_class: tuple[ClassErrors, ...]
    steps: tuple[int, ...]
    left_out: int = 0

    @property
    def largest(self) -> float:
        """Return the largest share of a class that a step alone, or all together, get wrong."""
        shares = [max(*row.wrong, row.wrong_in_the_end) / row.images for row in self.by_class]
        return max(shares, default=0.0)


@dataclass(frozen=True)
class LayerSums:
    """A layer over all steps, means per image."""

    layer: str
    input_kind: str
    firing_rate: float
    accumulates: float
    macs: float
    energy_pj: float
    ann_energy_pj: float


@dataclass(frozen=True)
class Energy:
    """Operations and energy of a student, means per image.

    `layers`: each layer at each of some steps; `sums`: each layer over all steps; `steps_pj`: what
    each step costs; `energy_pj` and `ann_energy_pj`: the whole student, and the ANN of its shape.
    """

    profile: str
    layers: tuple[LayerEnergy, ...]
    sums: tuple[LayerSums, ...]
    steps_pj: tuple[float, ...]
    energy_pj: float
    ann_energy_pj: float


@dataclass(frozen=True)
class EnergyPair:
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
class ExitPoint(EnergyPoint):
    """What early exit at a threshold of confidence reaches."""

    threshold: float
    mean_steps: float


@dataclass(frozen=True)
class Tradeoff:
    """Accuracy against energy: the steps up to each t, early exit in the order of its energy.

    `ann_pj`: the energy of the ANN of the same shape, whose accuracy is not known. `images`: on how
    many it was measured for this page, 0 where that is from the run's tables.
    """

    steps: tuple[EnergyPoint, ...]
    exits: tuple[ExitPoint, ...]
    teacher: EnergyPoint | None
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
    """A test image as a data URI, its class, and the answers; `final` is of all steps together.

    `frames`: it is a sample's frames, some side by side.
    """

    source: str
    index: int
    label: str
    answers: tuple[Answer, ...]
    final: Answer
    frames: bool = False


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
    """A setting that is not the recipe's, else tser's; `default` is None where there is none."""

    key: str
    value: str
    default: str | None


@dataclass(frozen=True)
class RunFacts:
    """What a run is, in words and numbers; what is not known is "" or None.

    `energy_pj` is what was held to `energy_budget_pj`. `events`: of which they were simulated.
    """

    model: str = ""
    dataset: str = ""
    method: str = ""
    teacher: str = ""
    seed: str = ""
    events: str = ""
    finished: str = ""
    device: str = ""
    timesteps: float | None = None
    epochs: float | None = None
    seconds: float | None = None
    energy_pj: float | None = None
    energy_budget_pj: float | None = None


@dataclass(frozen=True)
class RunReport:
    """All that the page says of one run.

    `title` says what it is, and `said` what stands in the way of a complete report, as that the run
    is not finished. `verdict`: on what is known of it. `pairs`: what its energy is compared with,
    nothing where it is not better than guessing.
    """

    name: str
    folder: str
    title: str
    kind: str
    state: str
    said: tuple[str, ...]
    facts: RunFacts
    accuracy: Accuracy | Missing
    curves: Curves | Missing
    mistakes: Mistakes | Missing
    energy: Energy | Missing
    verdict: Verdict
    pairs: tuple[EnergyPair, ...]
    tradeoff: Tradeoff | Missing
    gallery: Gallery | Missing
    all_settings: Mapping[str, str]
    settings: tuple[Setting, ...] | Missing
    environment: Mapping[str, str] | Missing
    commands: tuple[str, ...]

    def has(self, part: str) -> bool:
        """Return whether the page has a part by this name: an ANN has no energy of spikes."""
        if part == "layers":
            return isinstance(self.energy, Energy)
        return part not in ("energy", "tradeoff") or self.kind == "student"


@dataclass(frozen=True)
class CellReport:
    """A cell of an ablation: its name, how it stands to its baseline, its mean energy."""

    label: str
    statistics: CellStatistics
    energy_pj: float | None


@dataclass(frozen=True)
class AblationRun:
    """A run of an ablation, as ablation.csv has it."""

    settings: tuple[str, ...]
    seed: int | None
    state: str
    accuracy: float | None
    teacher_accuracy: float | None
    energy_pj: float | None
    seconds: float | None
    folder: str


@dataclass(frozen=True)
class AblationReport:
    """All that the page says of one ablation.

    `axes`: the short names of the varied settings. `teachers`: the accuracies of the teachers, as
    fractions. `shared`: where the runs come from, as far as all agree. `drawings`: the figures of
    its folder, by name.
    """

    name: str
    folder: str
    cells: tuple[CellReport, ...] | Missing
    axes: tuple[str, ...] = ()
    measure: str = ""
    said: tuple[str, ...] = ()
    teachers: tuple[float, ...] = ()
    runs: tuple[AblationRun, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    drawings: Mapping[str, Drawing] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A whole page; `version` is tser's.

    `same_images`: the runs on the images of the first one, by name, and how they disagree with it.
    """

    runs: tuple[RunReport, ...]
    ablations: tuple[AblationReport, ...]
    same_images: tuple[tuple[str, Disagreement], ...]
    version: str

    @property
    def letters(self) -> str:
        """Return a letter for each run."""
        # enough letters: `gather.MOST_SUBJECTS` is a dozen
        return ascii_uppercase[: len(self.runs)]
