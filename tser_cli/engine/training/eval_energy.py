"""The energy of a student in training when in eval mode, on images other than the test's."""

from __future__ import annotations

from collections.abc import Callable

from tser_cli.data.loaders import Split
from tser_cli.energy import mean_energy
from tser_cli.engine.evaluation.per_timestep import evaluate_split
from tser_cli.engine.runtime.context import Context
from tser_cli.engine.training.data_parallel import share_statistics
from tser_cli.engine.training.task import Task

IMAGES = 512


def measure_eval_energy(task: Task, context: Context) -> Callable[[], float]:
    """Return a function that counts and prices some held-out images, or else training images: pJ.

    Every process measures, and rank 0's count of all of them is what each returns.
    """
    split: Split = "validation" if context.config.data.validation_fraction else "train"

    def measure() -> float:
        budget = task.budget
        assert budget is not None, "only a budget asks for it"
        share_statistics(task.network, context.runtime)
        found = evaluate_split(
            task.model, context, split, task.timesteps, count=True, images=IMAGES
        )
        counts = found.counts
        assert counts is not None, "a counted pass"
        return mean_energy(counts, budget.profile)

    return measure
