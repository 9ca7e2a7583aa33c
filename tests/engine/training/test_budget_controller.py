"""The multiplier of energy: it keeps a budget that can be kept, and leaves a loose one alone."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from tser_cli.engine.training.budget import ANNEALED, CALIBRATIONS, FREE, MARGIN, BudgetController

STEPS = 600


class Plant:
    """A stand-in for a network: its energy goes towards free / (1 + multiplier / scale), noisily.

    `memory`: steps that it takes; `drift`: what the free energy becomes by the end, as a factor.
    """

    def __init__(
        self, free_pj: float, scale: float, memory: float, drift: float = 1.0, noise: float = 0.02
    ) -> None:
        self.free_pj, self.scale, self.memory = free_pj, scale, memory
        self.drift, self.noise = drift, noise
        self.energy_pj, self.draw = free_pj, random.Random(3)

    def step(self, multiplier: float, share: float) -> float:
        """The energy of one batch in training mode."""
        free = self.free_pj * self.drift**share
        self.energy_pj += (free / (1 + multiplier / self.scale) - self.energy_pj) / self.memory
        return self.energy_pj * (1 + self.draw.uniform(-self.noise, self.noise))


def driven(
    controller: BudgetController, plant: Plant, loss: float = 3.0, eval_ratio: float = 1.0
) -> list[float]:
    """The multipliers of a whole training."""
    multipliers = []
    while controller.done < controller.steps:
        multipliers.append(controller.multiplier)
        energy_pj = plant.step(controller.multiplier, controller.done / controller.steps)
        charge = controller.multiplier * energy_pj / controller.budget_pj
        controller.update(energy_pj, loss + charge)
        if controller.calibration_due:
            controller.calibrate(eval_ratio * plant.energy_pj)
    return multipliers


@pytest.mark.parametrize("share", [0.75, 0.5, 0.35, 0.25])
@pytest.mark.parametrize("loss", [0.3, 10.0])
@pytest.mark.parametrize("drift", [0.9, 1.1])
def test_a_budget_that_can_be_kept_is_kept_within_2_percent(
    share: float, loss: float, drift: float
) -> None:
    plant = Plant(800.0, scale=0.3 * loss, memory=20, drift=drift)
    controller = BudgetController(share * 800.0, STEPS)
    driven(controller, plant, loss)
    assert controller.budget_pj * 0.96 < plant.energy_pj <= controller.budget_pj


@pytest.mark.parametrize("ratio", [0.9, 1.1])
def test_what_is_kept_is_the_energy_in_eval_mode(ratio: float) -> None:
    plant, controller = Plant(800.0, scale=1.0, memory=20), BudgetController(400.0, STEPS)
    driven(controller, plant, eval_ratio=ratio)
    assert controller.ratio == pytest.approx(ratio, rel=0.03)
    assert 0.96 * 400.0 < ratio * plant.energy_pj <= 400.0


def test_a_loose_budget_has_no_weight_at_all() -> None:
    plant, controller = Plant(800.0, scale=1.0, memory=20), BudgetController(1000.0, STEPS)
    assert set(driven(controller, plant)) == {0.0}


def test_the_free_energy_is_measured_first_and_the_target_falls_in_equal_ratios() -> None:
    controller = BudgetController(200.0, 1000)
    targets = []
    for _ in range(1000):
        assert (controller.multiplier == 0.0) or controller.done >= round(FREE * 1000)
        controller.update(800.0, 2.0)
        targets.append(controller.target_pj)
    aim = 200.0 * (1 - MARGIN)
    assert controller.free_pj == pytest.approx(800.0)
    assert controller.free_loss == pytest.approx(2.0)
    middle = round(1000 * (FREE + ANNEALED) / 2)
    assert targets[middle - 1] == pytest.approx(math.sqrt(800.0 * aim), rel=0.01)
    assert targets[round(ANNEALED * 1000) - 1 :] == [pytest.approx(aim)] * (
        1001 - round(ANNEALED * 1000)
    )
    assert all(a >= b for a, b in itertools.pairwise(targets))


def test_it_is_calibrated_at_shares_of_the_training() -> None:
    controller, due = BudgetController(200.0, 1000), []
    for step in range(1, 1001):
        controller.update(100.0, 1.0)
        if controller.calibration_due:
            due.append(step)
    assert due == [round(1000 * share) for share in CALIBRATIONS]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_few_steps_are_no_trouble(steps: int) -> None:
    driven(BudgetController(400.0, steps), Plant(800.0, scale=1.0, memory=2))


def test_its_state_goes_on_to_the_same_bits() -> None:
    whole, plant = BudgetController(300.0, STEPS), Plant(800.0, scale=1.0, memory=20)
    energies = []
    while whole.done < STEPS:
        energies.append(plant.step(whole.multiplier, 0.0))
        whole.update(energies[-1], 2.0)
    first = BudgetController(300.0, STEPS)
    for energy_pj in energies[:200]:
        first.update(energy_pj, 2.0)
    second = BudgetController(**first.state())
    assert second == first == replace(first)
    for energy_pj in energies[200:]:
        second.update(energy_pj, 2.0)
    assert second.state() == whole.state()
