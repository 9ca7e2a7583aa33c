"""Energies as people write them: "4uJ" to picojoules and back, and shares of another energy."""

from __future__ import annotations

import re

from tser_cli.errors import ConfigError

UNITS = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ"))
# "u", the micro sign and the Greek letter mu are all in use
SIZES = {unit.lower(): size for size, unit in UNITS} | {"uj": 1e6, "\u03bcj": 1e6}
NUMBER = r"\d*\.?\d+(?:e-?\d+)?"
NO_BUDGET = "none"


def parse_energy(text: str) -> float:
    """ "1.38mJ" -> pJ. Raises ConfigError for anything else."""
    found = re.fullmatch(rf"\s*({NUMBER})\s*([pnuµm]?J)\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise ConfigError(f'"{text}" is no energy; write it as 1.38mJ, 4uJ or 950nJ')
    return float(found[1]) * SIZES[found[2].lower()]


def parse_budget(text: str, whole_pj: float) -> float:
    """ "4uJ" -> pJ; "25%" -> that share of `whole_pj`. Raises ConfigError for anything else."""
    found = re.fullmatch(rf"\s*({NUMBER})\s*%\s*", text, re.IGNORECASE)
    if found:
        return float(found[1]) / 100.0 * whole_pj
    try:
        return parse_energy(text)
    except ConfigError as error:
        raise ConfigError(
            f'"{text}" is no energy budget; write an energy with its unit, as 4uJ or 950nJ, or a '
            "share of the ANN of the same shape, as 25%"
        ) from error


def joules(energy_pj: float) -> str:
    """1234.5 -> "1.23 nJ"."""
    scale, unit = next((u for u in UNITS if abs(energy_pj) >= u[0]), UNITS[-1])
    return f"{energy_pj / scale:.3g} {unit}"
