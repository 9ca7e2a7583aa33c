"""The paper's ladder: six objectives, each of which differs from another in one thing.

With student logits z_t (t = 1..T), their mean zbar, teacher logits z_A, labels y, entropy H, and
KL_tau(a, b) = KL(softmax(a / tau) || softmax(b / tau)) in nats:

| name | L |
| --- | --- |
| ce   | ce_weight CE(zbar, y) |
| kd   | ce_weight CE(zbar, y)       + kd_weight tau^2 KL_tau(z_A, zbar) |
| tskl | ce_weight CE(zbar, y)       + kd_weight tau^2 mean_t KL_tau(z_A, z_t) |
| tsce | ce_weight mean_t CE(z_t, y) + kd_weight tau^2 KL_tau(z_A, zbar) |
| ts   | ce_weight mean_t CE(z_t, y) + kd_weight tau^2 mean_t KL_tau(z_A, z_t) |
| tser | ts - entropy_weight mean_n mean_t H(softmax(z_t)) |

kd: Hinton et al., 2015. tskl to tser: Yu et al., CVPR 2025, arXiv 2503.03144. Entropy is rewarded,
so that the student does not copy what the teacher is confidently wrong about.
"""

from __future__ import annotations

from typing import ClassVar

from tser_cli.losses import base
from tser_cli.losses.base import Distilling, Outputs, Supervised, Terms
from tser_cli.settings.fields import Real

PAPER = "Yu et al., CVPR 2025, arXiv 2503.03144"


class CeSettings(Supervised):
    """The settings of `ce`."""

    summary: ClassVar[str] = "cross entropy on the time-averaged logits; no teacher"
    source: ClassVar[str] = "baseline"
    needs_teacher: ClassVar[bool] = False
    separated: ClassVar[bool] = False

    name: str = "ce"


def ce(outputs: Outputs, settings: CeSettings) -> Terms:
    """Train the student alone: the usual training of an SNN."""
    term = base.mean_cross_entropy(outputs, settings)
    return {"loss": settings.ce_weight * term, "ce": term}


class KdSettings(Distilling):
    """The settings of `kd`."""

    summary: ClassVar[str] = "cross entropy and KL on the time-averaged logits"
    source: ClassVar[str] = "Hinton et al., 2015, arXiv 1503.02531"
    separated: ClassVar[bool] = False

    name: str = "kd"


def kd(outputs: Outputs, settings: KdSettings) -> Terms:
    """Average over time before both terms: classical distillation."""
    ce, kl = base.mean_cross_entropy(outputs, settings), base.mean_kl(outputs, settings.temperature)
    return base.distillation(ce, kl, settings)


class TsklSettings(Distilling):
    """The settings of `tskl`."""

    summary: ClassVar[str] = "kd with the KL term at every time step"
    source: ClassVar[str] = PAPER

    name: str = "tskl"


def tskl(outputs: Outputs, settings: TsklSettings) -> Terms:
    """Separate only the KL term over time."""
    ce, kl = base.mean_cross_entropy(outputs, settings), base.step_kl(outputs, settings.temperature)
    return base.distillation(ce, kl, settings)


class TsceSettings(Distilling):
    """The settings of `tsce`."""

    summary: ClassVar[str] = "kd with the cross entropy at every time step"
    source: ClassVar[str] = PAPER

    name: str = "tsce"


def tsce(outputs: Outputs, settings: TsceSettings) -> Terms:
    """Separate only the cross entropy over time."""
    ce, kl = base.step_cross_entropy(outputs, settings), base.mean_kl(outputs, settings.temperature)
    return base.distillation(ce, kl, settings)


class TsSettings(Distilling):
    """The settings of `ts`."""

    summary: ClassVar[str] = "cross entropy and KL at every time step"
    source: ClassVar[str] = PAPER

    name: str = "ts"


def ts(outputs: Outputs, settings: TsSettings) -> Terms:
    """Separate both terms: cross entropy and KL at every time step."""
    ce, kl = base.step_cross_entropy(outputs, settings), base.step_kl(outputs, settings.temperature)
    return base.distillation(ce, kl, settings)


class TserSettings(TsSettings):
    """The settings of `tser`: entropy is part of it.

    The weight is our choice; the paper's could not be found.
    """

    summary: ClassVar[str] = "ts, with the entropy of every step rewarded"

    name: str = "tser"
    # Every method has this weight; here alone it is not 0 by itself. Sweeps, in
    # recipes/ablations/results: fashion-mnist_entropy_weight.csv (0 to 0.2),
    # fashion-mnist_ladder.csv and glyphs_components.csv (0 and 0.05: ts and tser), where nothing
    # is resolved on held-out images; glyphs_search.csv (0.001, 0.01, 0.1: 0.01 best, n = 1).
    entropy_weight: Real = 0.05


def tser(outputs: Outputs, settings: TserSettings) -> Terms:
    """Take the weighted mean entropy of every step's prediction from `ts`."""
    return base.reward_entropy(ts(outputs, settings), outputs, settings)
