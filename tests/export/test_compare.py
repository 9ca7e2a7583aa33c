"""What counts as a difference: spikes away from ties, up to an image's first parting."""

from __future__ import annotations

import numpy as np
import pytest

from tser_cli.export.verify import Trace, compare

TIE = 1e-9


def make_truth(distance: float = 0.5) -> Trace:
    """Two layers of three neurons, two steps, two images; nothing fires."""
    spikes = {name: np.zeros((2, 2, 3), dtype=bool) for name in ("a", "b")}
    far = {name: np.full((2, 2, 3), distance, dtype=np.float32) for name in spikes}
    return Trace(np.zeros((2, 2, 4)), spikes, far)


def flipped(truth: Trace, *places: tuple[str, int, int, int]) -> dict[str, np.ndarray]:
    spikes = {name: values.copy() for name, values in truth.spikes.items()}
    for name, t, n, neuron in places:
        spikes[name][t, n, neuron] = True
    return spikes


def test_equal_runs_hold() -> None:
    truth = make_truth()
    comparison = compare(truth, truth.logits_TNK, truth.spikes, TIE)
    assert comparison.holds(1e-5)
    assert (comparison.values, comparison.differing, comparison.ties) == (24, 0, 0)
    assert comparison.least_distance == 0.5


def test_a_differing_spike_is_counted_in_its_layer_and_ends_its_image() -> None:
    truth = make_truth()
    spikes = flipped(truth, ("b", 0, 1, 2), ("a", 1, 1, 0), ("a", 1, 1, 1))
    comparison = compare(truth, truth.logits_TNK, spikes, TIE)
    assert [layer.differing for layer in comparison.layers] == [0, 1]
    assert comparison.parted == 1
    assert not comparison.holds(1e-5)


def test_a_difference_at_a_tie_is_forgiven_and_so_is_what_follows_in_that_image() -> None:
    truth = make_truth()
    truth.distance["a"][0, 1, 2] = 1e-12
    spikes = flipped(truth, ("a", 0, 1, 2), ("b", 0, 1, 0), ("b", 1, 1, 0))
    logits = truth.logits_TNK.copy()
    logits[:, 1] = 9.0
    comparison = compare(truth, logits, spikes, TIE)
    assert (comparison.differing, comparison.ties, comparison.parted) == (0, 1, 1)
    assert comparison.logits_difference == (0.0, 0.0)
    assert comparison.holds(1e-5)


def test_a_difference_beside_a_tie_is_not_forgiven() -> None:
    truth = make_truth()
    truth.distance["a"][0, 1, 2] = 1e-12
    spikes = flipped(truth, ("a", 0, 1, 2), ("a", 0, 1, 1))
    assert compare(truth, truth.logits_TNK, spikes, TIE).differing == 1


def test_where_every_image_parts_nothing_was_shown() -> None:
    truth = make_truth(distance=1e-12)
    spikes = flipped(truth, ("a", 0, 0, 0), ("a", 0, 1, 0))
    comparison = compare(truth, truth.logits_TNK, spikes, TIE)
    assert comparison.differing == 0
    assert not comparison.holds(1e-5)


@pytest.mark.parametrize(("scale", "holds"), [(1.0, False), (100.0, True)])
def test_logits_agree_relative_to_the_largest(scale: float, holds: bool) -> None:
    truth = make_truth()
    truth.logits_TNK[:, :, 0] = scale
    comparison = compare(truth, truth.logits_TNK + 1e-4, truth.spikes, TIE)
    assert comparison.logits_difference == pytest.approx((1e-4, 1e-4))
    assert comparison.holds(1e-5) is holds


def test_another_prediction_does_not_hold() -> None:
    truth = make_truth()
    logits = truth.logits_TNK.copy()
    logits[:, 0, 1] = 1e-6
    comparison = compare(truth, logits, truth.spikes, TIE)
    assert comparison.predictions_differing == 1
    assert not comparison.holds(1e-5)


def test_logits_that_are_no_numbers_are_never_close() -> None:
    truth = make_truth()
    logits = truth.logits_TNK.copy()
    logits[1, 0, 0] = np.nan  # in another step than the first
    assert not compare(truth, logits, truth.spikes, TIE).holds(1e-5)


def test_layers_without_a_spike_are_told() -> None:
    truth = make_truth()
    truth.spikes["b"][0, 0, 0] = True
    assert compare(truth, truth.logits_TNK, truth.spikes, TIE).silent == ("a",)


def test_a_run_without_a_layer_s_spikes_is_refused() -> None:
    truth = make_truth()
    with pytest.raises(ValueError, match="no spikes of b"):
        compare(truth, truth.logits_TNK, {"a": truth.spikes["a"]}, TIE)
