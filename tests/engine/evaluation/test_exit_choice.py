"""Thresholds of early exit: every one is tried, and the right one is taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tser_cli.base.errors import ConfigError
from tser_cli.engine.evaluation.early_exit import ALWAYS, NEVER, Stops, keep_budget, reach_accuracy

# Three images at two steps; the first is sure and right at once, the third sure and wrong.
BY_HAND = Stops(
    np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    np.array([[0.9, 0.4, 0.8], [0.9, 0.7, 0.6]]),
    np.array([[2.0, 2.0, 2.0], [3.0, 4.0, 5.0]]),
)


def drawn(images: int = 400, steps: int = 4, seed: int = 0) -> Stops:
    """Random images; a later step costs more."""
    generator = np.random.default_rng(seed)
    confidence = generator.choice(np.linspace(0.1, 1.0, 50), (steps, images))
    right = (generator.random((steps, images)) < 0.8).astype(float)
    return Stops(right, confidence, generator.integers(1, 9, (steps, images)).cumsum(0) * 1.0)


def one_by_one(stops: Stops, threshold: float) -> tuple[float, float, float]:
    """Accuracy, mean and deviation of the energy, image by image."""
    right, energy = [], []
    for image in range(stops.images):
        sure = [t for t in range(len(stops.right_TI)) if stops.confidence_TI[t, image] >= threshold]
        step = (sure or [len(stops.right_TI) - 1])[0]
        right.append(stops.right_TI[step, image])
        energy.append(stops.energy_TI[step, image])
    return float(np.mean(right)), float(np.mean(energy)), float(np.std(energy, ddof=1))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_all_thresholds_at_once_are_each_one_by_itself(steps: int) -> None:
    stops = drawn(60, steps)
    thresholds = np.concatenate([stops.thresholds(), [0.33, 0.777]])
    found = zip(
        stops.accuracy(thresholds),
        stops.energy(thresholds),
        stops.deviation(thresholds),
        strict=True,
    )
    for threshold, (accuracy, energy, deviation) in zip(thresholds, found, strict=True):
        wanted = one_by_one(stops, threshold)
        assert (accuracy, energy, deviation) == pytest.approx(wanted, abs=1e-9)


def test_by_hand() -> None:
    assert BY_HAND.thresholds().tolist() == [ALWAYS, 0.4, 0.8, 0.9, NEVER]
    thresholds = np.array([0.0, 0.5, 0.85, NEVER])
    assert BY_HAND.energy(thresholds) * 3 == pytest.approx([6.0, 8.0, 11.0, 12.0])
    assert BY_HAND.accuracy(thresholds) * 3 == pytest.approx([1.0, 2.0, 3.0, 3.0])


def test_an_accuracy_is_reached_with_the_least_energy() -> None:
    assert reach_accuracy(BY_HAND, 1.0) == 0.9
    assert reach_accuracy(BY_HAND, 2 / 3) == 0.8
    assert reach_accuracy(BY_HAND, 0.4) == 0.8  # one of three is 0.33
    assert reach_accuracy(BY_HAND, 1 / 3) == ALWAYS
    never_right = Stops(0 * BY_HAND.right_TI, BY_HAND.confidence_TI, BY_HAND.energy_TI)
    assert reach_accuracy(never_right, 0.1) is None


def test_a_budget_is_kept_with_room_for_chance() -> None:
    stops = drawn(400)
    mean, deviation = (f(np.array([0.8]))[0] for f in (stops.energy, stops.deviation))
    error = 1.644854 * deviation * math.sqrt(1 / 400 + 1 / 100)
    threshold = keep_budget(stops, mean + 1.0001 * error, 100)
    tried = stops.thresholds()
    assert stops.energy(np.array([threshold]))[0] == pytest.approx(mean)
    assert keep_budget(stops, mean + 0.9999 * error, 100) == tried[tried < threshold].max()
    assert keep_budget(stops, mean + 1.0001 * error, 10_000) > threshold


@given(st.integers(0, 10_000))
def test_a_budget_kept_so_is_kept_on_other_images_nineteen_times_in_twenty(seed: int) -> None:
    # a single seed may be the twentieth; the bound of four errors is one in 30,000
    ours, others = drawn(300, seed=2 * seed), drawn(300, seed=2 * seed + 1)
    threshold = keep_budget(ours, 10.0, 300)
    spent = others.energy(np.array([threshold]))[0]
    error = others.deviation(np.array([threshold]))[0] * math.sqrt(2 / 300)
    assert spent <= 10.0 + (4 - 1.64) * error


def test_about_nineteen_in_twenty() -> None:
    kept = 0
    for seed in range(200):
        ours, others = drawn(300, seed=2 * seed), drawn(300, seed=2 * seed + 1)
        threshold = keep_budget(ours, 10.0, 300)
        kept += bool(others.energy(np.array([threshold]))[0] <= 10.0)
    assert 180 <= kept <= 200


def test_a_loose_budget_stops_nothing() -> None:
    assert keep_budget(drawn(), 1e6, 100) == NEVER


def test_where_the_first_step_leaves_no_room_every_image_stops_there() -> None:
    stops = drawn()
    first = stops.energy_TI[0].mean()
    assert keep_budget(stops, first, 100) == ALWAYS


def test_a_budget_below_the_first_step_is_refused_with_what_that_costs() -> None:
    with pytest.raises(ConfigError, match="first time step alone costs 2 pJ an image, more than 1"):
        keep_budget(BY_HAND, 1.9, 100)
