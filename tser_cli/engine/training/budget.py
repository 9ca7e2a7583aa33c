"""Train to an energy budget: what it is in pJ, and how much energy weighs in the loss.

The loss is the method's + multiplier x energy / budget, and the multiplier is found on the way, by
dual ascent with a proportional part, as the gradient of an augmented Lagrangian has it (Nocedal and
Wright, Numerical Optimization, 2006, chapter 17): with the excess e = energy / target - 1,

    integral   <- max(0, integral + RATE e / steps)
    multiplier  = loss max(0, integral + PROPORTIONAL e)

`energy` is a running mean; `loss`, the method's before the first pressure, makes the constants fit
methods whose losses differ in size. Pure arithmetic on Python floats: equal steps give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tser_cli.base.errors import ConfigError
from tser_cli.energy import prices
from tser_cli.energy.counts import Counts
from tser_cli.energy.joules import ann_macs, operations, stem_energy
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.settings.config import FLOAT_BITS, Config
from tser_cli.settings.fields import joules, parse_budget

# Choices of ours, as shares of the training's steps. The free energy is measured first; from there
# the target falls in equal ratios to the budget, and stays there while the learning rate decays.
FREE, ANNEALED = 0.2, 0.65
WINDOW = 0.01  # of the running means
RATE, PROPORTIONAL = 40.0, 2.0
LARGEST_EXCESS = 1.0
MARGIN = 0.015  # aimed below the budget, for images that were not seen
# When the energy in eval mode is compared with that in training.
CALIBRATIONS = (0.5, 0.65, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class EnergyBudget:
    """What an image may cost; `macs`: what it costs in any case, multiply-accumulates an image."""

    pj: float
    macs: int
    profile: prices.Profile


def settle_budget(config: Config, counts: Counts) -> EnergyBudget:
    """Return the budget of `config.energy` for the network that `counts_at_random` counted.

    Raises ConfigError where it can't be held to that: for a budget below what costs energy
    without a spike, or above the ANN, among others.
    """
    if config.performance.compile == "on":
        raise ConfigError("energy.budget does not go with performance.compile = on; leave it off")
    profile, text, timesteps = profile_of(config), config.energy.budget, config.model.timesteps
    # what costs energy without a spike does not depend on the data
    macs, most = int(operations(counts)[0].sum()), ann_macs(counts) * profile.mac_pj
    least, pj = macs * profile.mac_pj, parse_budget(text, "energy.budget").in_pj(most)
    if pj <= least:
        stem = stem_energy(counts, profile)["once" if counts.stem_once else "per_step"]
        raise ConfigError(
            f"energy.budget = {text}: {joules(pj)} is not more than the {joules(least)} "
            f"that an image costs without a single spike ({joules(stem)} of it in the stem, "
            f"profile {profile.name}); allow more, or choose another stem or network"
        )
    # of frames a share is one of the ANN on their mean, and that ANN may see each of them
    most *= timesteps if counts.frames else 1
    if pj > most:
        raise ConfigError(
            f"energy.budget = {text}: {joules(pj)} is more than the {joules(most)} of the "
            f"ANN of the same shape{' on each frame' if counts.frames else ''} "
            f"(profile {profile.name}); allow less, or set no budget"
        )
    return EnergyBudget(pj, macs, profile)


def profile_of(config: Config, asked: str = "") -> prices.Profile:
    """Return the profile that charges a student: by its settings, or by the bits of its weights.

    `asked`: one that was named for this measurement, which is used as it is. Raises ConfigError
    for a profile that is unknown or damaged, and for one of the settings that is for narrower
    weights.
    """
    if asked:
        return prices.load_profile(asked)
    bits = config.model.weight_bits
    by_bits = prices.DEFAULT_PROFILE if bits == FLOAT_BITS else prices.INT8_PROFILE
    profile = prices.load_profile(config.energy.profile or by_bits)
    prices.check_precision(profile, bits, assume_int8=False)
    return profile


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
        # A plain mean at first, then a running one: from 0, that would need its window to rise.
        share = 1.0 / min(self.done, max(5.0, WINDOW * self.steps))
        self.mean_pj += share * (energy_pj - self.mean_pj)
        if free:
            self.free_pj = self.mean_pj
            self.free_loss += share * (abs(loss) - self.free_loss)
        else:
            self.integral = max(0.0, self.integral + RATE / self.steps * self._excess)

    def calibrate(self, energy_pj: float) -> None:
        """Take in the energy in eval mode, now."""
        # the norms' running statistics are not a batch's: the same weights spike otherwise
        self.ratio = energy_pj / self.mean_pj


@dataclass
class EnergyControl:
    """A controller, and what gives it the energy of eval mode, in pJ, on images."""

    controller: BudgetController
    measure: Callable[[], float]

    def follow(self, values: dict[str, Tensor], images: int, runtime: Runtime) -> None:
        """Take in a step on `images` images of this process; calibrate where that is due."""
        # Over all processes, so that each finds the same multiplier.
        shares = [float(values[name]) * images for name in ("energy_pj", "loss")]
        sums = runtime.sum(torch.tensor([*shares, images], dtype=torch.float64)).tolist()
        self.controller.update(sums[0] / sums[2], sums[1] / sums[2])
        if self.controller.calibration_due:
            self.controller.calibrate(self.measure())

    def keeps_budget(self) -> bool:
        """Return whether the network as it is now keeps the budget in eval mode."""
        return self.measure() <= self.controller.budget_pj

    def columns(self) -> dict[str, Any]:
        """Return what a row of metrics.csv says of it at the end of an epoch."""
        return {
            "energy_budget_pj": self.controller.target_pj,
            "energy_multiplier": self.controller.multiplier,
        }
