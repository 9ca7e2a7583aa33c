"""The section [energy] of a run's settings."""

from __future__ import annotations

from pydantic import field_validator

from tser_cli.errors import ConfigError
from tser_cli.fields import Section
from tser_cli.quantities import NO_BUDGET, parse_budget


class EnergyConfig(Section):
    """What an image may cost, and by which cost profile energy is told.

    `budget`: a student is trained until it costs at most so much: an energy, as "4uJ", a share of
    the ANN of the same shape, as "25%", or "none". `profile`: a name or a TOML file; "" goes by the
    bits of the weights.
    """

    budget: str = NO_BUDGET
    profile: str = ""

    @field_validator("budget")
    @classmethod
    def _budget(cls, text: str) -> str:
        if text == NO_BUDGET:
            return text
        try:
            parse_budget(text)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return text
