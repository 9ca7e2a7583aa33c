"""Choose the threshold of early exit: to keep an energy budget, or to reach an accuracy.

All thresholds are tried at once. With m_t the largest confidence of an image up to step t, the
image goes on after step t exactly where m_t is below the threshold. So a sum over images, as a
function of the threshold, changes at the values m_t alone, and sorting them gives every value of
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tser_cli.energy import Profile
from tser_cli.energy.counts import FloatArray
from tser_cli.energy.joules import priced
from tser_cli.errors import ConfigError
from tser_cli.quantities import joules
from tser_cli.report.predictions import Predictions

ALWAYS, NEVER = 0.0, math.inf
"""The thresholds at which every image stops at the first step, and none before the last."""
CERTAINTY = 0.95
ROUNDING = 1e-12  # of a quotient of integers, less a margin


@dataclass(frozen=True)
class Stops:
    """What stopping each of I images at each of T steps gives.

    `right_TI`: 1 where the mean of the logits up to the step is right. `confidence_TI`: its largest
    probability. `energy_TI`: energy up to and with the step, pJ.
    """

    right_TI: FloatArray
    confidence_TI: FloatArray
    energy_TI: FloatArray

    @property
    def images(self) -> int:
        """Return the number of images, I."""
        return int(self.right_TI.shape[1])

    def thresholds(self) -> FloatArray:
        """Return every threshold that treats an image differently, ascending, and `NEVER`."""
        reached = largest_so_far(self.confidence_TI).ravel()
        return np.concatenate([[ALWAYS], np.unique(reached), [NEVER]])

    def accuracy(self, thresholds_C: FloatArray) -> FloatArray:
        """Return the accuracy at each threshold, a fraction."""
        return sums(self.right_TI, self.confidence_TI, thresholds_C) / self.images

    def energy(self, thresholds_C: FloatArray) -> FloatArray:
        """Return the mean energy of an image at each threshold, pJ."""
        return sums(self.energy_TI, self.confidence_TI, thresholds_C) / self.images

    def shares(self, threshold: float) -> list[float]:
        """Return the share of images that stop at each step, [T]."""
        steps, chosen = len(self.right_TI), np.array([threshold])
        here_TI = np.eye(steps)[:, :, None].repeat(self.images, axis=2)
        return [
            float(sums(here_TI[t], self.confidence_TI, chosen)[0]) / self.images
            for t in range(steps)
        ]

    def deviation(self, thresholds_C: FloatArray) -> FloatArray:
        """Return the standard deviation of the energy over the images at each threshold, pJ."""
        centre = self.energy_TI[-1].mean()  # near the values: squares then lose no digits
        squares = sums((self.energy_TI - centre) ** 2, self.confidence_TI, thresholds_C)
        variance = squares / self.images - (self.energy(thresholds_C) - centre) ** 2
        unbiased = np.maximum(variance, 0.0) * self.images / max(1, self.images - 1)
        deviation_C: FloatArray = np.sqrt(unbiased)
        return deviation_C


def stops_of(answered: Predictions, profile: Profile) -> Stops:
    """Return the stops of a network that can stop between its steps."""
    steps = answered.steps
    assert steps is not None, "a counted pass of a network that can stop"
    return Stops(
        (answered.cumulative_IT == answered.labels_I[:, None]).T.astype(np.float64),
        steps.confidence_IT.T.astype(np.float64),
        priced(steps.macs_T[:, None], steps.accumulates_IT.T, profile),
    )


def largest_so_far(confidence_TI: FloatArray) -> FloatArray:
    """Return the largest confidence up to each step but the last, [T - 1, I]."""
    largest: FloatArray = np.maximum.accumulate(confidence_TI[:-1], axis=0)
    return largest


def sums(values_TI: FloatArray, confidence_TI: FloatArray, thresholds_C: FloatArray) -> FloatArray:
    """Sum over the images the value at the step where each stops, for each threshold: [C].

    An image stops at the first step whose confidence is at least the threshold, else at the last.
    """
    reached = largest_so_far(confidence_TI).ravel()
    order = np.argsort(-reached, kind="stable")
    gains = (values_TI[:-1] - values_TI[1:]).ravel()[order]
    gained = np.concatenate([[0.0], np.cumsum(gains)])
    stopping = np.searchsorted(-reached[order], -thresholds_C, side="right")
    total: FloatArray = values_TI[-1].sum() + gained[stopping]
    return total


def keep_budget(stops: Stops, budget_pj: float, test_images: int) -> float:
    """Return the largest threshold that keeps a budget on other images too, with 95 % certainty.

    `stops` are of images that are not the test's. The mean energy of I images differs from that of
    `test_images` others by chance; so what has to keep the budget is the mean plus 1.645 standard
    errors of that difference, sd x sqrt(1 / I + 1 / test_images). Where not even stopping at the
    first step leaves so much room, that is what is returned. Raises ConfigError where it costs more
    than the budget.
    """
    thresholds_C = stops.thresholds()
    least = float(stops.energy(thresholds_C[:1])[0])
    if least > budget_pj:
        raise ConfigError(
            f"--energy-budget: the first time step alone costs {joules(least)} an image, more than "
            f"{joules(budget_pj)}; early exit saves no more than the other steps. Allow more, or "
            "distil a student that costs less"
        )
    error = math.sqrt(1 / stops.images + 1 / test_images)
    reach_C = NormalDist().inv_cdf(CERTAINTY) * error * stops.deviation(thresholds_C)
    keeps_C = stops.energy(thresholds_C) + reach_C <= budget_pj
    return float(thresholds_C[keeps_C].max(initial=ALWAYS))


def reach_accuracy(stops: Stops, accuracy: float) -> float | None:
    """Return the smallest threshold with at least that accuracy: it costs the least energy.

    None where no threshold reaches it.
    """
    thresholds_C = stops.thresholds()
    enough_C = stops.accuracy(thresholds_C) >= accuracy - ROUNDING
    return float(thresholds_C[enough_C][0]) if enough_C.any() else None
