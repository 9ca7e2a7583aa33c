"""What sections of settings are made of: kinds of numbers, each field's policy, dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
FLOAT32_MAX = 3.4e38  # a larger one is infinite where it is used
Positive = Annotated[float, Field(gt=0.0, le=FLOAT32_MAX)]
NonNegative = Annotated[float, Field(ge=0.0, le=FLOAT32_MAX)]
Real = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
TOML_INTEGER_MAX = 2**63 - 1  # a larger one can't be written into config.toml
Count = Annotated[int, Field(ge=1, le=TOML_INTEGER_MAX)]
Natural = Annotated[int, Field(ge=0, le=TOML_INTEGER_MAX)]


@dataclass(frozen=True)
class Policy:
    """What a setting means to runs that exist; put it into a field's `Annotated[...]`.

    `results`: another value gives other results. `resume`: a run may be gone on with under another
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
