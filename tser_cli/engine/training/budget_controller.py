"""How much energy weighs in the loss, so that a training ends at its energy budget.

The loss is the method's + multiplier x energy / budget, and the multiplier is found on the way, by
dual ascent with a proportional part, as the gradient of an augmented Lagrangian has it (Nocedal and
Wright, Numerical Optimization, 2006, chapter 17): with the excess e = energy / target - 1,

    integral   <- max(0, integral + RATE e / steps)
    multiplier  = loss max(0, integral + PROPORTIONAL e)

`energy` is a running mean; `loss`, the method's before the first pressure, makes the constants fit
methods whose losses differ in size. Pure arithmetic on Python floats: equal steps give equal bits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# Choices of ours, as shares of the training's steps. The free energy is measured first; from there
# the target falls in equal ratios to the budget, and stays there while the learning rate decays.
FREE, ANNEALED = 0.2, 0.65
WINDOW = 0.01  # of the running means
RATE, PROPORTIONAL = 40.0, 2.0
LARGEST_EXCESS = 1.0
MARGIN = 0.015  # aimed below the budget, for images that were not seen
# When the energy in eval mode is compared with that in training.
CALIBRATIONS = (0.5, 0.65, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass
class BudgetController:
    """Find the multiplier of the energy, step by step.

    `budget_pj`: what an image may cost in eval mode. `steps`: of the whole training. `done`: steps
    behind. `mean_pj`: running mean of the energy in training mode; `free_pj`, `free_loss`: what
    energy and loss were before the target began to fall. `ratio`: energy in eval mode / in training
    mode.
    """

    budget_pj: float
    steps: int
    done: int = 0
    mean_pj: float = 0.0
    free_pj: float = 0.0
    free_loss: float = 0.0
    integral: float = 0.0
    ratio: float = 1.0

    @property
    def aim_pj(self) -> float:
        """Return the energy in training mode at which eval mode is just below the budget."""
        return self.budget_pj * (1.0 - MARGIN) / self.ratio

    @property
    def target_pj(self) -> float:
        """Return what an image may cost in training mode at this step."""
        if self._free:
            return max(self.mean_pj, self.aim_pj)
        passed = min((self.done / self.steps - FREE) / (ANNEALED - FREE), 1.0)
        over = max(self.free_pj / self.aim_pj, 1.0)
        return float(self.aim_pj * over ** (1.0 - passed))

    @property
    def multiplier(self) -> float:
        """Return the weight of energy / budget in the loss; 0 to begin with."""
        if self._free:
            return 0.0
        return self.free_loss * max(0.0, self.integral + PROPORTIONAL * self._excess)

    @property
    def calibration_due(self) -> bool:
        """Return whether the energy in eval mode is wanted after this step."""
        return any(round(share * self.steps) == self.done for share in CALIBRATIONS)

    @property
    def _free(self) -> bool:
        return self.done < max(1, round(FREE * self.steps))

    @property
    def _excess(self) -> float:
        return min(self.mean_pj / self.target_pj - 1.0, LARGEST_EXCESS)

    def update(self, energy_pj: float, loss: float) -> None:
        """Take in the mean energy of an image in this step, and the loss."""
        free, self.done = self._free, self.done + 1
        share = 1.0 / min(self.done, max(5.0, WINDOW * self.steps))
        self.mean_pj += share * (energy_pj - self.mean_pj)
        if free:
            self.free_pj = self.mean_pj
            self.free_loss += share * (abs(loss) - self.free_loss)
        else:
            self.integral = max(0.0, self.integral + RATE / self.steps * self._excess)

    def calibrate(self, energy_pj: float) -> None:
        """Take in the energy in eval mode, now."""
        self.ratio = energy_pj / self.mean_pj

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)
