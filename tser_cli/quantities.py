"""Energies as people write them: 4uJ, 25% of the ANN of the same shape; and picojoules in words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tser_cli.errors import ConfigError
from tser_cli.visible import cut

UNITS = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ"))
# "u", the micro sign and the Greek letter mu are all in use
PREFIXES = {"p": 1.0, "n": 1e3, "u": 1e6, "\u00b5": 1e6, "\u03bc": 1e6, "m": 1e9, "": 1e12}
NO_BUDGET = "none"
NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"
SHOWN = 80  # characters of a mistyped text that a message repeats


@dataclass(frozen=True)
class Budget:
    """A limit for the mean energy of an image: `amount` in pJ, or a fraction of the ANN's."""

    amount: float
    of_ann: bool = False

    def in_pj(self, ann_pj: float) -> float:
        """Return the limit in pJ, where the ANN of the same shape costs `ann_pj` an image."""
        return self.amount * ann_pj if self.of_ann else self.amount


def parse_energy(text: str) -> float:
    """Return "1.38mJ" in pJ; units run from pJ to J, and 1 MJ is none of them.

    Raises ConfigError for anything else, and for 0.
    """
    found = re.fullmatch(rf"\s*({NUMBER})\s*([pnuµμm]?)[Jj]\s*", text)
    energy = float(found[1]) * PREFIXES[found[2]] if found else 0.0
    if not 0.0 < energy < math.inf:
        raise ConfigError(
            f'"{cut(text, SHOWN)}" is no energy; write it as 1.38mJ, 4uJ or 950nJ (pJ to J)'
        )
    return energy


def parse_budget(text: str, flag: str = "") -> Budget:
    """Return "4uJ" or "25%" (of the ANN of the same shape).

    Raises ConfigError, which begins with `flag` if that is given. More than 100 % is refused: the
    ANN itself would keep it.
    """
    named = f"{flag}: " if flag else ""
    found = re.fullmatch(rf"\s*({NUMBER})\s*%\s*", text)
    if found:
        if not 0.0 < float(found[1]) <= 100.0:
            raise ConfigError(
                f"{named}{cut(text.strip(), SHOWN)}: a share of the ANN's energy is above 0 %, at "
                "most 100 %"
            )
        return Budget(float(found[1]) / 100, of_ann=True)
    try:
        return Budget(parse_energy(text))
    except ConfigError as error:
        raise ConfigError(
            f"{named}{error}, or as a share of the ANN of the same shape: 25%"
        ) from error


def joules(energy_pj: float) -> str:
    """1234.5 -> "1.23 nJ"."""
    scale, unit = unit_of(energy_pj)
    return f"{energy_pj / scale:.3g} {unit}"


def unit_of(energy_pj: float) -> tuple[float, str]:
    """Return the unit in which an energy is written: its size in pJ, and its name."""
    return next((u for u in UNITS if abs(energy_pj) >= u[0]), UNITS[-1])
