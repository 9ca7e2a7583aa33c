"""Cells of an ablation on the tiny settings."""

from __future__ import annotations

from typing import Any

from tests.engine.conftest import make_config
from tser_cli.engine.ablation.grid import Cell


def make_cell(varied: dict[str, Any], seed: int = 0, **changes: Any) -> Cell:
    """`make_cell({"method.name": "kd"}, seed)`: a cell; more keywords change its settings."""
    return Cell(varied, seed, make_config({"training.seed": seed, **changes}))
