"""Count a network by what it says that its layers are fed with, or else by what the data show."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tser_cli.energy import Counts, counting
from tser_cli.energy.layouts import INSIDE
from tser_cli.energy.network_counter import count_operations
from tser_cli.models import Classifier


class AnyCounter(Protocol):
    """What both ways of counting give."""

    def counts(self) -> Counts: ...


def counting_of(model: Classifier, timesteps: int) -> AbstractContextManager[AnyCounter]:
    """Count what `model` does inside the `with`, called with `timesteps` (1 for an ANN).

    A network that does not declare its input kinds is tried on a few images at its first call.
    """
    kinds = model.input_kinds()
    if kinds is None:
        return count_operations(model, INSIDE, timesteps)
    return counting(model, kinds)
