"""Train to an energy budget: what it is in pJ, whether it can be kept, and how a run follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tser_cli.config import FLOAT_BITS, Config
from tser_cli.energy import DEFAULT_PROFILE, INT8_PROFILE, Profile, load_profile
from tser_cli.energy.counts import Counts
from tser_cli.energy.joules import ann_macs, operations, priced, stem_energy
from tser_cli.energy.profiles import check_precision
from tser_cli.engine.runs.input_kinds import counting_of
from tser_cli.engine.runtime.processes import Runtime
from tser_cli.engine.training.budget_controller import BudgetController
from tser_cli.errors import ConfigError
from tser_cli.models import Classifier
from tser_cli.quantities import joules, parse_budget


@dataclass(frozen=True)
class EnergyBudget:
    """What an image may cost; `macs`: what it costs in any case, multiply-accumulates an image."""

    pj: float
    macs: int
    profile: Profile

    def energy(self, accumulates: Tensor) -> Tensor:
        """Price the accumulates of an image: pJ."""
        energy: Tensor = priced(self.macs, accumulates, self.profile)
        return energy


@dataclass
class EnergyControl:
    """A controller, and what gives it the energy of eval mode, in pJ, on images."""

    controller: BudgetController
    measure: Callable[[], float]

    def follow(self, values: dict[str, Tensor], images: int, runtime: Runtime) -> None:
        """Take in a step on `images` images of this process; calibrate where that is due."""
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


def make_control(
    budget: EnergyBudget | None, measure: Callable[[], float], steps: int
) -> EnergyControl | None:
    """Return what holds a training of so many steps to `budget`; None where there is none."""
    return None if budget is None else EnergyControl(BudgetController(budget.pj, steps), measure)


def profile_of(config: Config, asked: str = "") -> Profile:
    """Return the profile that charges a student: by its settings, or by the bits of its weights.

    `asked`: one that was named for this measurement, which is taken as it is. Raises ConfigError
    for a profile that is unknown or damaged, and for one of the settings that is for narrower
    weights.
    """
    if asked:
        return load_profile(asked)
    bits = config.model.weight_bits
    by_bits = DEFAULT_PROFILE if bits == FLOAT_BITS else INT8_PROFILE
    profile = load_profile(config.energy.profile or by_bits)
    check_precision(profile, bits, assume_int8=False)
    return profile


def settle_budget(
    config: Config, model: Classifier, image_shape: tuple[int, int, int]
) -> EnergyBudget:
    """Return the budget of `config.energy`.

    Raises ConfigError where `model` can't be held to it.
    """
    if model.input_kinds() is None:
        raise ConfigError(
            f"energy.budget: the network {config.model.student} does not say what feeds its "
            "layers; give it a method input_kinds(), which the training of energy rests on"
        )
    if config.performance.compile == "on":
        raise ConfigError("energy.budget does not go with performance.compile = on; leave it auto")
    profile = profile_of(config)
    counts = count_silence(model, image_shape, config.model.timesteps)
    budget = EnergyBudget(
        parse_budget(config.energy.budget, "energy.budget").in_pj(
            ann_macs(counts) * profile.mac_pj
        ),
        int(operations(counts)[0].sum()),
        profile,
    )
    check_reach(config.energy.budget, budget, counts)
    return budget


@torch.no_grad()
def count_silence(model: Classifier, image_shape: tuple[int, int, int], timesteps: int) -> Counts:
    """Count one black image in eval mode, for what does not depend on the data."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    with counting_of(model, timesteps) as counter:
        model(torch.zeros(1, *image_shape, device=device), timesteps)
    model.train(was_training)
    return counter.counts()


def check_reach(text: str, budget: EnergyBudget, counts: Counts) -> None:
    """Raise ConfigError for a budget below what costs energy without a spike, or above the ANN."""
    profile = budget.profile
    least, most = budget.macs * profile.mac_pj, ann_macs(counts) * profile.mac_pj
    if budget.pj <= least:
        stem = stem_energy(counts, profile)["once" if counts.stem_once else "per_step"]
        raise ConfigError(
            f"energy.budget = {text}: {joules(budget.pj)} is not more than the {joules(least)} "
            f"that an image costs without a single spike ({joules(stem)} of it in the stem, "
            f"profile {profile.name}); allow more, or choose another model.stem"
        )
    if budget.pj > most:
        raise ConfigError(
            f"energy.budget = {text}: {joules(budget.pj)} is more than the {joules(most)} of the "
            f"ANN of the same shape (profile {profile.name}); allow less, or set no budget"
        )
