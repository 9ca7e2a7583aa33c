"""Intervals against scipy and by hand."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tser_cli.report.statistics import interval


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12, unique=True))
def test_the_interval_is_scipy_s(differences: list[float]) -> None:
    if statistics.stdev(differences) < 1e-9:
        return
    found = interval(differences)
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_an_interval_by_hand() -> None:
    # mean 2, standard deviation 1, n = 3; with two degrees of freedom t has a closed form:
    # the central 95 % reach to 0.95 sqrt(2 / (1 - 0.95^2)) = 4.3027
    reach = 0.95 * (2 / (1 - 0.95**2)) ** 0.5 / 3**0.5
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - reach, 2 + reach), abs=1e-9)


@pytest.mark.parametrize("differences", [[], [0.3]])
def test_one_seed_has_no_interval(differences: list[float]) -> None:
    assert interval(differences) is None


def test_differences_without_variance_have_an_interval_of_one_point() -> None:
    assert interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
    # equal counts, whose quotients differ in the last bit
    low, high = interval([348 / 360 - 346 / 360, 350 / 360 - 348 / 360]) or (0.0, 1.0)
    assert low == pytest.approx(2 / 360, abs=1e-12)
    assert high == pytest.approx(2 / 360, abs=1e-12)
