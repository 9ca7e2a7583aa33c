"""What every test can rely on: one torch thread, a fixed seed, no settings from outside."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# Examples are drawn from a fixed seed and without a clock, so that a test fails always or never.
settings.register_profile("tser", derandomize=True, deadline=None, database=None)
settings.load_profile("tser")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """TSER_* variables of the developer's shell never reach a test."""
    for name in [name for name in os.environ if name.startswith("TSER_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The global random states are the same at the start of every test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
