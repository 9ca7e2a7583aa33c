"""`kd_feature`: `kd` and `feature` together, the combination that the paper compares with.

L = ce_weight CE(zbar, y) + kd_weight tau^2 KL_tau(z_A, zbar) + feature_weight mean_i MSE_i, with
zbar = mean_t z_t [N, K] and the features' term of `feature`.
"""

from __future__ import annotations

from typing import ClassVar

from tser_cli.losses import feature
from tser_cli.losses.base import Outputs, Terms
from tser_cli.losses.feature import feature_error, make_adapters
from tser_cli.losses.ladder import KdSettings, kd

__all__ = ["Settings", "loss", "make_adapters"]


class Settings(KdSettings, feature.Settings):
    """The settings of `kd_feature`: those of `kd` and of `feature`."""

    summary: ClassVar[str] = "kd and feature together"
    source: ClassVar[str] = "the combination that Yu et al., CVPR 2025, compare with"
    deviations: ClassVar[str] = "those of feature"

    name: str = "kd_feature"


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """Return the terms of `kd`, and the features' error."""
    found, error = kd(outputs, settings), feature_error(outputs)
    return {
        **found,
        "loss": found["loss"] + settings.feature_weight * error,
        "feature": error,
    }
