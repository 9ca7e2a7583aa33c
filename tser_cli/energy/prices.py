"""Cost profiles: what one operation costs, in which technology, and who says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from tser_cli.base.errors import ConfigError, nearest, unknown
from tser_cli.base.files import is_file, read_toml
from tser_cli.settings.fields import Positive, Section

Text = Annotated[str, Field(min_length=1)]

HOROWITZ = "Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014"
DAVIES = (
    "Davies et al., Loihi: a neuromorphic manycore processor with on-chip learning, "
    "IEEE Micro 38(1), 2018"
)

LEMAIRE = (
    "Lemaire et al., An Analytical Estimation of Spiking Neural Networks Energy Efficiency, "
    "ICONIP 2022, arXiv 2210.13107"
)


class Profile(Section):
    """Energies in pJ: `mac_pj` a multiply-accumulate, `ac_pj` a synaptic operation (accumulate).

    `ac16_pj`: an accumulate whose sum 16 bits hold (`LayerFacts.narrow`), None where that is no
    cheaper. `neuron_update_pj`: one update of one neuron, None where the source has no figure; it
    is reported by itself and is in no headline. `model`: an energy model beyond arithmetic that
    comes with the constants, "" where there is none. `source` and `technology` say where the
    constants come from, `measured` whether on a chip that ran networks; `note` what a reader must
    know before quoting them. `step_seconds`: the time of a step, None where it is not known.
    """

    model_config = ConfigDict(strict=True)  # "4.6" in quotes, or true, is a slip and no price

    name: Text
    mac_pj: Positive
    ac_pj: Positive
    ac16_pj: Positive | None = None
    neuron_update_pj: Positive | None = None
    source: Text
    technology: Text
    note: str = ""
    model: Literal["", "lemaire-2022"] = ""
    measured: bool = False
    step_seconds: Positive | None = None

    def accumulate_pj(self, narrow: bool) -> float:
        """Return what an accumulate costs; `narrow`: 16 bits hold its sum."""
        return self.ac16_pj if narrow and self.ac16_pj is not None else self.ac_pj


DEFAULT_PROFILE = "horowitz-45nm-fp32"  # what most papers price with
INT8_PROFILE = "horowitz-45nm-int8"

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="horowitz-45nm-fp32",
            mac_pj=4.6,
            ac_pj=0.9,
            source=HOROWITZ,
            technology="45 nm, 0.9 V, 32-bit floating point",
            note="multiply 3.7 pJ + add 0.9 pJ; arithmetic alone, without memory or control",
        ),
        Profile(
            name="horowitz-45nm-fp16",
            mac_pj=1.5,
            ac_pj=0.4,
            source=HOROWITZ,
            technology="45 nm, 0.9 V, 16-bit floating point",
            note="multiply 1.1 pJ + add 0.4 pJ; arithmetic alone, without memory or control",
        ),
        Profile(
            name="horowitz-45nm-int8",
            mac_pj=0.3,
            ac_pj=0.1,
            ac16_pj=0.05,
            source=HOROWITZ,
            technology="45 nm, 0.9 V, 8-bit integer, sums of 32 or 16 bits",
            note="multiply 0.2 pJ (8 bits) + add 0.1 pJ (32 bits); an accumulate is 0.05 pJ where "
            "the fan-in shows that 16 bits hold the sum (Dally, ScaledML 2019, after Horowitz); "
            "arithmetic alone, without memory or control",
        ),
        Profile(
            name="loihi",
            mac_pj=23.6,
            ac_pj=23.6,
            neuron_update_pj=81.0,
            source=DAVIES,
            technology="Intel 14 nm FinFET",
            note="figures from simulation before silicon: 23.6 pJ is the least that a synaptic "
            "operation takes, with its memory access; 81 pJ is the update of an active neuron. "
            "The chip has no multiply-accumulate: one is charged here as one synaptic operation, "
            "so that on this profile the ratio to an ANN compares numbers of operations, not two "
            "chips",
        ),
        Profile(
            name="lemaire-2022",
            mac_pj=3.2,
            ac_pj=0.1,
            source=LEMAIRE,
            technology="45 nm, 32-bit integer",
            note="multiply 3.1 pJ + add 0.1 pJ: the arithmetic of the table. Memory and addressing "
            "depend on sizes, not on operations alone, and are listed separately",
            model="lemaire-2022",
        ),
    )
}


def check_precision(profile: Profile, weight_bits: int, assume_int8: bool) -> None:
    """Raise ConfigError where int8 arithmetic would price wider weights, unless that is meant."""
    # A network of floats at the price of integers would look 20 times cheaper than it is.
    if profile.name == INT8_PROFILE and weight_bits > 8 and not assume_int8:
        raise ConfigError(
            f"--profile {INT8_PROFILE}: the weights have {weight_bits} bits, and "
            "arithmetic on 8 bits is not what they cost; quantise the network, or say --assume-int8"
        )


def load_profile(name: str) -> Profile:
    """Return the profile of that name, or of the TOML file at that path, with the fields of
    `Profile`.

    Raises ConfigError for an unknown name or a file that is damaged or holds no valid profile.
    """
    if name in PROFILES:
        return PROFILES[name]
    path = Path(os.path.expanduser(name))  # noqa: PTH111  (Path's raises for an unknown ~user)
    if not is_file(path):
        message = unknown("cost profile", name, PROFILES)
        raise ConfigError(f"{message}; or give the path of a TOML file with a profile of your own")
    try:
        document = read_toml(path)
    except (ValueError, OSError) as error:
        raise ConfigError(f"cost profile {path} can't be read: {error}") from error
    try:
        profile = Profile.model_validate(document)
    except ValidationError as error:
        problems = [_problem(detail["loc"], detail["msg"]) for detail in error.errors()]
        raise ConfigError("\n".join(f"cost profile {path}: {text}" for text in problems)) from error
    # A table says the name alone: figures of two profiles of one name could be confused.
    if profile.name in PROFILES:
        raise ConfigError(
            f'cost profile {path}: the name "{profile.name}" belongs to a profile that comes with '
            "tser; choose another, so that tables can't be confused"
        )
    return profile


def _problem(location: tuple[int | str, ...], message: str) -> str:
    key = ".".join(str(part) for part in location)
    if message.startswith("Extra inputs"):
        return f'unknown key "{key}"{nearest(key, Profile.model_fields)}'
    return f"{key}: {message.removeprefix('Value error, ')}"
