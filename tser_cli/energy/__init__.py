"""Counting synaptic operations, and turning counts into joules."""

from tser_cli.energy.counter import SopCounter, counting
from tser_cli.energy.counts import Counts, Layer, LayerCounts
from tser_cli.energy.joules import energy_per_step, energy_up_to, mean_energy
from tser_cli.energy.network_counter import NetworkCounter, count_operations
from tser_cli.energy.profiles import (
    DEFAULT_PROFILE,
    INT8_PROFILE,
    PROFILES,
    Profile,
    load_profile,
)
from tser_cli.energy.table import Labels, energy_rows, float_energy, sidecar

__all__ = [
    "DEFAULT_PROFILE",
    "INT8_PROFILE",
    "PROFILES",
    "Counts",
    "Labels",
    "Layer",
    "LayerCounts",
    "NetworkCounter",
    "Profile",
    "SopCounter",
    "count_operations",
    "counting",
    "energy_per_step",
    "energy_rows",
    "energy_up_to",
    "float_energy",
    "load_profile",
    "mean_energy",
    "sidecar",
]
