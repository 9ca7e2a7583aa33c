"""What sections of settings are made of: policies, kinds of numbers, dotted keys, energies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from tser_cli.base.errors import ConfigError, cut


@dataclass(frozen=True)
class Policy:
    """What a setting means to runs that exist; put it into a field's `Annotated[...]`.

    `results`: another value gives other results. `resume`: a run may be resumed under another
    value. `measuring`: it also counts when a finished run is measured. `teacher`: a teacher that is
    trained for a student takes over the student's value.
    """

    results: bool = True
    resume: bool = False
    measuring: bool = False
    teacher: bool = False

    def __post_init__(self) -> None:
        assert self.results or self.resume, "what changes no result may change on resume"


class Section(BaseModel):
    """Base of all sections: unknown keys, NaN, infinity and true for a number are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take true as 1, so that epochs = true would train for one epoch.
        assert info.field_name is not None
        numeric = cls.model_fields[info.field_name].annotation in (int, float)
        if numeric and isinstance(value, bool):
            raise ValueError("expected a number, not true or false")
        return value

    @classmethod
    def policies(cls) -> dict[str, Policy]:
        """Return the policy of each field; a field without one changes results and nothing else."""
        stated = {
            name: [item for item in field.metadata if isinstance(item, Policy)]
            for name, field in cls.model_fields.items()
        }
        return {name: found[0] if found else Policy() for name, found in stated.items()}


FLOAT32_MAX = 3.4e38  # a larger one is infinite where it is used
TOML_INTEGER_MAX = 2**63 - 1  # a larger one can't be written into config.toml
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=FLOAT32_MAX)]
NonNegative = Annotated[float, Field(ge=0.0, le=FLOAT32_MAX)]
Real = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
Count = Annotated[int, Field(ge=1, le=TOML_INTEGER_MAX)]
Natural = Annotated[int, Field(ge=0, le=TOML_INTEGER_MAX)]


def flatten(document: Mapping[str, Any]) -> dict[str, Any]:
    """{"data": {"name": "x"}} -> {"data.name": "x"}; a value outside a section keeps its key."""
    flat: dict[str, Any] = {}
    for section, values in document.items():
        if isinstance(values, dict):
            flat.update({f"{section}.{key}": value for key, value in values.items()})
        else:
            flat[section] = values
    return flat


def split(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"data.name": "x"} -> {"data": {"name": "x"}}, the inverse of `flatten`."""
    sections: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot:
            sections.setdefault(section, {})[name] = value
        else:
            sections[key] = value
    return sections


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
    # MJ would be a slip for mJ, by nine orders of magnitude: only these prefixes, in this case
    energy = float(found[1]) * PREFIXES[found[2]] if found else 0.0
    if not 0.0 < energy < math.inf:
        raise ConfigError(
            f'"{cut(text, SHOWN)}" is no energy; write it as 1.38mJ, 4uJ or 950nJ (pJ to J)'
        )
    return energy


def parse_budget(text: str, flag: str = "") -> Budget:
    """Return "4uJ" or "25%" (of the ANN of the same shape).

    Raises ConfigError, which begins with `flag` if that is given. More than 100 % is an error: the
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


def joules(energy_pj: float, beside_pj: float | None = None) -> str:
    """1234.5 -> "1.23 nJ"; in the unit of the energy that it stands beside, where one is given."""
    scale, unit = unit_of(beside_pj or energy_pj)
    number = energy_pj / scale
    return f"{number:,.0f} {unit}" if abs(number) >= 999.5 else f"{number:.3g} {unit}"


def unit_of(energy_pj: float) -> tuple[float, str]:
    """Return the unit in which an energy is written: its size in pJ, and its name."""
    return next((u for u in UNITS if abs(energy_pj) >= u[0]), UNITS[-1])
