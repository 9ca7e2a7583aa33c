"""Intervals against scipy and by hand."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tser_cli.report.statistics import (
    binomial_tail,
    holm,
    interval,
    mcnemar,
    paired_p,
    proportion_interval,
    proportions_p,
    sign_test,
    two_way_interval,
)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12, unique=True))
def test_the_interval_is_scipy_s(differences: list[float]) -> None:
    if statistics.stdev(differences) < 1e-9:
        return
    found = interval(differences)
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
    p = paired_p(differences)
    assert p is not None and found is not None
    assert abs(p - 0.05) < 1e-9 or (p < 0.05) == (not found[0] <= 0 <= found[1])


def test_an_interval_by_hand() -> None:
    # mean 2, standard deviation 1, n = 3; with two degrees of freedom t has a closed form:
    # the central 95 % reach to 0.95 sqrt(2 / (1 - 0.95^2)) = 4.3027
    reach = 0.95 * (2 / (1 - 0.95**2)) ** 0.5 / 3**0.5
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - reach, 2 + reach), abs=1e-9)


def test_differences_without_variance_have_an_interval_of_one_point() -> None:
    assert interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
    # equal counts, whose quotients differ in the last bit
    low, high = interval([348 / 360 - 346 / 360, 350 / 360 - 348 / 360]) or (0.0, 1.0)
    assert low == pytest.approx(2 / 360, abs=1e-12)
    assert high == pytest.approx(2 / 360, abs=1e-12)


def test_too_few_values_and_values_without_variance() -> None:
    assert interval([]) is interval([0.3]) is paired_p([0.1]) is None
    assert (paired_p([0.0, 0.0]), paired_p([0.25, 0.25])) == (1.0, 0.0)
    assert two_way_interval(np.ones((1, 9))) is two_way_interval(np.ones((9, 1))) is None
    assert two_way_interval(np.zeros((5, 9))) == (0.0, 0.0)


def test_a_proportion_by_wilson_s_formula() -> None:
    # n = 10, p = 0.5, z = 1.959964: (p + z^2/2n -+ z sqrt(pq/n + z^2/4n^2)) / (1 + z^2/n)
    assert proportion_interval(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    assert proportion_interval(0, 10)[0] == 0.0


def test_mcnemar_by_hand() -> None:
    # 5 images that only the first gets right, 1 that only the second does: two-sided,
    # 2 (C(6, 0) + C(6, 1)) / 2^6 = 14 / 64
    first = np.array([1] * 5 + [0] + [1] * 20 + [0] * 4, dtype=bool)
    second = np.array([0] * 5 + [1] + [1] * 20 + [0] * 4, dtype=bool)
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(14 / 64)
    assert mcnemar(first, first) == 1.0
    assert sign_test(3, 3) == sign_test(0, 0) == 1.0


@pytest.mark.parametrize(
    ("right", "images", "chance", "p"),
    [
        # 3 or 4 of 4 at 1/4: (4 x 3 + 1) / 4^4
        (3, 4, 0.25, 13 / 256),
        (4, 4, 0.5, 1 / 16),
        (1, 3, 1 / 3, 1 - (2 / 3) ** 3),
        # an answer to a single image, or to images of a single class, shows nothing
        (1, 1, 1.0, 1.0),
        (0, 5, 0.2, 1.0),
    ],
)
def test_the_binomial_tail_by_hand(right: int, images: int, chance: float, p: float) -> None:
    assert binomial_tail(right, images, chance) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 3000), st.integers(1, 3000), st.floats(0.001, 0.999))
def test_the_binomial_tail_is_scipy_s(right: int, images: int, chance: float) -> None:
    right = min(right, images)
    expected = stats.binom.sf(right - 1, images, chance)
    assert binomial_tail(right, images, chance) == pytest.approx(expected, rel=1e-8, abs=1e-200)


def test_proportions_by_hand() -> None:
    # 60 and 40 of 100: z = 0.2 / sqrt(0.5 x 0.5 x 2 / 100) = 2.828427
    assert proportions_p(60, 100, 40, 100) == pytest.approx(0.004677735, rel=1e-6)
    assert proportions_p(90, 100, 90, 100) == proportions_p(5, 5, 7, 7) == 1.0


def test_holm_by_hand() -> None:
    # 3 x 0.01, 2 x 0.02, 1 x 0.03 raised to what came before it
    assert holm([0.03, None, 0.01, 0.02]) == [
        pytest.approx(p) if p else p for p in (0.04, None, 0.03, 0.04)
    ]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=10))
def test_holm_only_ever_raises_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = [p for p in holm(list(p_values)) if p is not None]
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    paired = sorted(zip(p_values, adjusted, strict=True))
    assert [a for _, a in paired] == sorted(adjusted)


def test_a_two_way_interval_by_hand() -> None:
    # seeds' means 1, 3; images' means 1, 2, 3; no rest: MS_S = 3 x 2 = 6, MS_I = 2 x 1 = 2,
    # MS_E = 0. Variance (6 + 2) / 6; freedom 8^2 / (6^2 / 1 + 2^2 / 2) = 64 / 38
    values = np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    reach = float(stats.t.ppf(0.975, 64 / 38)) * (8 / 6) ** 0.5
    assert two_way_interval(values) == pytest.approx((2 - reach, 2 + reach))


def test_a_two_way_interval_is_no_shorter_than_one_over_seeds_or_images() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(5, 1)) + generator.normal(size=(5, 40))
    low, high = two_way_interval(values) or (0.0, 0.0)
    seeds = interval(values.mean(1).tolist()) or (0.0, 0.0)
    assert high - low > 0.95 * (seeds[1] - seeds[0])
    assert (low + high) / 2 == pytest.approx(values.mean())


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_a_two_way_interval_holds_the_truth_as_often_as_it_says(spread: float) -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        skill_S1 = generator.normal(0.0, spread, (5, 1))
        ease_1I = generator.normal(0.0, 2.0, (1, 200))
        chance = 1 / (1 + np.exp(-skill_S1 - ease_1I))
        right = (generator.random((5, 200)) < chance).astype(float)
        low, high = two_way_interval(right) or (0.0, 0.0)
        held += low <= 0.5 <= high  # by symmetry
    assert 0.92 <= held / 400 <= 0.99
