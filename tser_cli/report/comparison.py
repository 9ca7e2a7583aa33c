"""How runs and groups of runs differ: in their settings, image by image, and over seeds.

`tser compare`, ablations and report pages all compare by this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser_cli.report import statistics
from tser_cli.report.csv_files import STATISTICS
from tser_cli.report.predictions import Predictions

Different = tuple[str, tuple[Any, ...]]
Key = tuple[str, ...]  # of a cell: the values of what is varied, as texts
Values = Mapping[int, float]  # of a cell, by seed
# Of a cell, by seed: whether the network's answer for each test image is right, [I].
Answers = Mapping[int, NDArray[np.bool_]]
Interval = tuple[float, float]


def differing(documents: Sequence[Mapping[str, Any]]) -> tuple[Different, ...]:
    """Return the names whose values are not the same in all documents, with them; None: not there.

    Lists are compared as they are, and 2 is 2.0.
    """
    names = dict.fromkeys(name for document in documents for name in document)
    rows = [(name, tuple(document.get(name) for document in documents)) for name in names]
    return tuple((name, values) for name, values in rows if any(v != values[0] for v in values))


@dataclass(frozen=True)
class RunFigures:
    """What one run measured, and how it stands to the first one.

    `low` and `high`: the 95 % interval of its accuracy over test images, not over trainings.
    `difference`: its accuracy minus that of the first run. `p_value`: of McNemar's test that both
    err equally often on the same images. None where it is not known.
    """

    state: str
    accuracy: float | None
    energy_pj: float | None
    images: int | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    p_value: float | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Disagreement:
    """Of the same images, how many each of two networks alone has right; McNemar's p-value."""

    only_first: int
    only_other: int
    p_value: float


def disagreement(first: Predictions, other: Predictions) -> Disagreement | None:
    """Compare the answers after all steps; None where the images are not the same."""
    if not np.array_equal(first.labels_I, other.labels_I):
        return None
    # labels are all that is kept of the images: equal ones count as the same images
    right_I, others_I = first.right(), other.right()
    only_first, only_other = int((right_I & ~others_I).sum()), int((others_I & ~right_I).sum())
    return Disagreement(only_first, only_other, statistics.mcnemar(others_I, right_I))


@dataclass(frozen=True)
class CellStatistics:
    """A cell over its seeds, and how it stands to its baseline.

    `settings`: what is varied, as texts. `difference`: the mean of differences paired by seed (the
    same initial weights, data order and split), of so many `pairs`. `resolved`: whether its 95 %
    interval leaves 0 out, `resolved_holm` whether that holds for all comparisons of the table
    together; None where there is no verdict, as of fewer than five pairs. `two_way`: the interval
    over seeds and images. `p_mcnemar`: of a single pair. None where it is not known.
    """

    settings: Mapping[str, str]
    measure: str
    n: int
    mean: float | None
    std: float | None
    is_baseline: bool = False
    pairs: int = 0
    difference: float | None = None
    interval: Interval | None = None
    resolved: bool | None = None
    p_value: float | None = None
    p_holm: float | None = None
    resolved_holm: bool | None = None
    two_way: Interval | None = None
    p_mcnemar: float | None = None

    @property
    def starred(self) -> bool:
        """Return whether a difference is resolved by itself, but not by Holm's procedure."""
        return bool(self.resolved) and self.resolved_holm is False

    def row(self) -> dict[str, Any]:
        """Return the row of summary.csv."""
        low, high = self.interval or (None, None)
        two_way_low, two_way_high = self.two_way or (None, None)
        flags = (self.is_baseline, self.resolved, self.resolved_holm)
        baseline, resolved, resolved_holm = (None if f is None else int(f) for f in flags)
        values = (
            *(self.measure, self.n, self.mean, self.std, baseline),
            *(self.difference, low, high, self.pairs, resolved, self.p_value, self.p_holm),
            *(resolved_holm, two_way_low, two_way_high, self.p_mcnemar),
        )
        return {**self.settings, **dict(zip(STATISTICS, values, strict=True))}


def statistics_in(row: Mapping[str, Any], axes: Iterable[str] = ()) -> CellStatistics:
    """Return what a row of summary.csv says; a column that it lacks is None."""

    def flag(name: str) -> bool | None:
        # a flag is 0, 1 or empty: empty is no verdict, which is not the same as "no"
        return None if row.get(name) is None else bool(row[name])

    def reach(low: str, high: str) -> Interval | None:
        return None if row.get(low) is None else (row[low], row[high])

    return CellStatistics(
        settings={axis: str(row[axis]) for axis in axes},
        measure=str(row.get("measure")),
        n=int(row.get("n") or 0),
        mean=row.get("accuracy_mean"),
        std=row.get("accuracy_std"),
        is_baseline=bool(row.get("baseline")),
        pairs=int(row.get("pairs") or 0),
        difference=row.get("difference_mean"),
        interval=reach("difference_low", "difference_high"),
        resolved=flag("resolved"),
        p_value=row.get("p_value"),
        p_holm=row.get("p_holm"),
        resolved_holm=flag("resolved_holm"),
        two_way=reach("two_way_low", "two_way_high"),
        p_mcnemar=row.get("p_mcnemar"),
    )


def summarise(
    cells: Mapping[Key, Values],
    axes: Sequence[str],
    baseline: Mapping[str, Any],
    measure: str,
    answers: Mapping[Key, Answers] | None = None,
) -> list[CellStatistics]:
    """Return the statistics of each cell, against the cell with the settings of `baseline` that is
    like it in all others.
    """
    answers, summary = answers or {}, []
    for key, values in cells.items():
        settings = dict(zip(axes, key, strict=True))
        base_key = tuple(str(baseline.get(axis, settings[axis])) for axis in axes)
        found = replace(describe(values, settings, measure), is_baseline=key == base_key)
        if key != base_key and base_key in cells:
            found = compare(found, values, cells[base_key])
            found = compare_answers(found, answers.get(key, {}), answers.get(base_key, {}))
        summary.append(found)
    return with_holm(summary)


def with_holm(summary: Sequence[CellStatistics]) -> list[CellStatistics]:
    """Return the statistics with p-values adjusted for the number of comparisons (Holm)."""
    # of many comparisons some would else be resolved by chance
    adjusted = statistics.holm([one.p_value for one in summary])
    return [
        replace(one, p_holm=p, resolved_holm=None if p is None else p < 1 - statistics.CONFIDENCE)
        for one, p in zip(summary, adjusted, strict=True)
    ]


def describe(values: Values, settings: Mapping[str, str], measure: str) -> CellStatistics:
    """Return the mean of a cell and the standard deviation over its seeds."""
    found = list(values.values())
    mean = fmean(found) if found else None
    # the seeds are a sample of those that might have been: n - 1
    std = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return CellStatistics(settings, measure, len(found), mean, std)


def compare(cell: CellStatistics, values: Values, base: Values) -> CellStatistics:
    """Return `cell` with the differences to its baseline, over the seeds that both have."""
    # by seed: cells finish in any order, and the last bits of a sum depend on it
    differences = [value - base[seed] for seed, value in sorted(values.items()) if seed in base]
    reach = statistics.interval(differences)
    judged = reach is not None and len(differences) >= statistics.FEWEST
    return replace(
        cell,
        pairs=len(differences),
        difference=fmean(differences) if differences else None,
        interval=reach,
        resolved=not reach[0] <= 0.0 <= reach[1] if reach and judged else None,
        p_value=statistics.paired_p(differences) if judged else None,
    )


def without_verdict(cell: CellStatistics) -> CellStatistics:
    """Return `cell` as it is where runs are missing from its mean.

    Those that are left need not be like the others, so that their interval judges nothing.
    """
    return replace(cell, resolved=None, p_value=None, p_holm=None, resolved_holm=None)


def compare_answers(cell: CellStatistics, right: Answers, base: Answers) -> CellStatistics:
    """Return `cell` with the interval over seeds and images; of one seed with McNemar's test.

    As it is where the runs have no predictions, or not of the same images.
    """
    # answers of another number are not to the same test images
    seeds = [seed for seed in right if seed in base and len(right[seed]) == len(base[seed])]
    # one seed shows no spread between seeds: only the images can be tested
    if len(seeds) == 1:
        return replace(cell, p_mcnemar=statistics.mcnemar(right[seeds[0]], base[seeds[0]]))
    pairs = [right[seed].astype(float) - base[seed].astype(float) for seed in seeds]
    return replace(cell, two_way=statistics.two_way_interval(np.stack(pairs))) if pairs else cell
