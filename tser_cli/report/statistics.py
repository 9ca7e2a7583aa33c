"""Intervals of means and of paired differences, as pure functions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean, by Student's t with n - 1 degrees of freedom.

    Of paired differences it is the interval of the paired t test. None for fewer than two values.
    """
    if len(values) < 2:
        return None
    if min(values) == max(values):  # the t statistic of no variance is 0 / 0
        return values[0], values[0]
    from scipy import stats

    zeros = [0.0] * len(values)
    with warnings.catch_warnings():
        # k/n - l/n of equal counts differ in the last bit: scipy warns, the interval is right
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.ttest_rel(values, zeros).confidence_interval(CONFIDENCE)
    return float(found.low), float(found.high)


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion by Wilson's score (JASA 22, 209, 1927).

    Of one network's right answers it tells how far another test set of that size may lead, not
    how far another training may.
    """
    from scipy import stats

    found = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)
