"""Cells of an ablation on the tiny settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tser_cli.engine.ablation.grid import Cell
from tser_cli.settings.config import Config


@pytest.fixture
def make_cell(make_config: Callable[..., Config]) -> Callable[..., Cell]:
    """`make_cell({"method.name": "kd"}, seed)`: a cell; more keywords change its settings."""

    def make(varied: dict[str, Any], seed: int = 0, **changes: Any) -> Cell:
        return Cell(varied, seed, make_config({"training.seed": seed, **changes}))

    return make
