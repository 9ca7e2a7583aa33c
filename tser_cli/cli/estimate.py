"""How long a training will take, told once, from its own first steps."""

from __future__ import annotations

import time

WARM_UP = 2  # steps: the first ones plan convolutions and ask for memory
FEWEST_STEPS, FEWEST_SECONDS = 3, 2.0  # on a GPU a call returns before its work is done
WORTH_TELLING = 20.0  # seconds


class Estimate:
    """Measure the steps of a training until the rest of it can be estimated."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        self._seen = 0
        self._began = 0.0
        self._told = False

    def step(self) -> float | None:
        """Count a step; return the seconds that are left the first time they are known."""
        self._seen += 1
        if self._told or self._seen < WARM_UP:
            return None
        now = time.monotonic()
        if self._seen == WARM_UP:
            self._began = now
            return None
        steps, seconds = self._seen - WARM_UP, now - self._began
        if steps < FEWEST_STEPS or seconds < FEWEST_SECONDS:
            return None
        self._told = True
        left = seconds / steps * (self._left - self._seen)
        return left if left >= WORTH_TELLING else None
