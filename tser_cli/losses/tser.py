"""`tser`: temporal separation with entropy regularisation (Yu et al., CVPR 2025).

L = ce_weight mean_t CE(z_t, y) + kd_weight tau^2 mean_t KL_tau(z_A, z_t)
    - entropy_weight mean_n mean_t H(softmax(z_t)).

Entropy is rewarded, so that the student does not copy what the teacher is confidently wrong about.
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)), in nats.
"""

from __future__ import annotations

from typing import ClassVar

from tser_cli.fields import Real
from tser_cli.losses import ts
from tser_cli.losses.base import Outputs, Terms, reward_entropy


class Settings(ts.Settings):
    """The settings of `tser`: entropy is part of it.

    The weight is our choice; the paper's could not be found.
    """

    summary: ClassVar[str] = "ts, with the entropy of every step rewarded"

    name: str = "tser"
    entropy_weight: Real = 0.05


def loss(outputs: Outputs, settings: Settings) -> Terms:
    """`ts` less the weighted mean entropy of every step's prediction."""
    return reward_entropy(ts.loss(outputs, settings), outputs, settings)
