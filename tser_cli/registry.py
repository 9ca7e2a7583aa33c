"""Names a user can type, and where the code behind them lives.

A new data set, model or method is one file and one entry here. This module imports nothing
heavy: `tser --help` and `tser methods` read it without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tser_cli.errors import ConfigError, unknown


@dataclass(frozen=True)
class DatasetEntry:
    """A data set: `target` is a loader `(DataConfig) -> Dataset`; the recipes are its defaults.

    `own_images`: its images are whatever lies in `data.dir`, so that another folder is other data.
    """

    target: str
    teacher_recipe: str
    student_recipe: str
    own_images: bool = False


@dataclass(frozen=True)
class ModelEntry:
    """An architecture: `target` builds it; `spiking_only` where it makes no sense as an ANN."""

    target: str
    spiking_only: bool = False


@dataclass(frozen=True)
class MethodEntry:
    """A training objective: `target` is its module, see `tser_cli.losses.base`.

    `weights`: its own defaults of the settings in `[method]`, where they differ from the common
    ones.
    """

    target: str
    summary: str
    source: str
    needs_teacher: bool = True
    separated: bool = True
    weights: Mapping[str, float | str] = field(default_factory=dict)


E = TypeVar("E")

_TSER = "Yu et al., CVPR 2025, arXiv 2503.03144"
_KD = "Hinton et al., 2015, arXiv 1503.02531"

DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        "tser_cli.data.digits:load", "digits/resnet34_teacher", "digits/resnet18_tser"
    ),
    "mnist": DatasetEntry(
        "tser_cli.data.downloads:mnist",
        "fashion-mnist/resnet34_teacher",
        "fashion-mnist/resnet18_tser",
    ),
    "fashion-mnist": DatasetEntry(
        "tser_cli.data.downloads:fashion_mnist",
        "fashion-mnist/resnet34_teacher",
        "fashion-mnist/resnet18_tser",
    ),
    "cifar10": DatasetEntry(
        "tser_cli.data.downloads:cifar10", "cifar10/resnet34_teacher", "cifar10/resnet18_tser"
    ),
    "cifar100": DatasetEntry(
        "tser_cli.data.downloads:cifar100", "cifar100/resnet34_teacher", "cifar100/resnet18_tser"
    ),
    "imagenet": DatasetEntry(
        "tser_cli.data.folders:imagenet",
        "imagenet/resnet34_teacher",
        "imagenet/sew_resnet18_tser",
    ),
    "imagefolder": DatasetEntry(
        "tser_cli.data.folders:imagefolder",
        "imagefolder/resnet34_teacher",
        "imagefolder/resnet18_tser",
        own_images=True,
    ),
    "npz": DatasetEntry(
        "tser_cli.data.npz:load",
        "imagefolder/resnet34_teacher",
        "imagefolder/resnet18_tser",
        own_images=True,
    ),
}

MODELS: dict[str, ModelEntry] = {
    "resnet18": ModelEntry("tser_cli.models.resnet:resnet18"),
    "resnet19": ModelEntry("tser_cli.models.resnet:resnet19"),
    "resnet20": ModelEntry("tser_cli.models.resnet:resnet20"),
    "resnet34": ModelEntry("tser_cli.models.resnet:resnet34"),
    "resnet50": ModelEntry("tser_cli.models.resnet:resnet50"),
    "sew_resnet18": ModelEntry("tser_cli.models.resnet:sew_resnet18", spiking_only=True),
    "sew_resnet34": ModelEntry("tser_cli.models.resnet:sew_resnet34", spiking_only=True),
    "vgg11": ModelEntry("tser_cli.models.vgg:vgg11"),
    "vgg16": ModelEntry("tser_cli.models.vgg:vgg16"),
}

METHODS: dict[str, MethodEntry] = {
    "ce": MethodEntry(
        "tser_cli.losses.ce",
        "cross entropy on the time-averaged logits; no teacher",
        "baseline",
        needs_teacher=False,
        separated=False,
    ),
    "kd": MethodEntry(
        "tser_cli.losses.kd",
        "cross entropy and KL on the time-averaged logits",
        _KD,
        separated=False,
    ),
    "tskl": MethodEntry("tser_cli.losses.tskl", "kd with the KL term at every time step", _TSER),
    "tsce": MethodEntry(
        "tser_cli.losses.tsce", "kd with the cross entropy at every time step", _TSER
    ),
    "ts": MethodEntry("tser_cli.losses.ts", "cross entropy and KL at every time step", _TSER),
    "tser": MethodEntry(
        "tser_cli.losses.tser",
        "ts, with the entropy of every step rewarded",
        _TSER,
        weights={"entropy_weight": 0.05},
    ),
    "feature": MethodEntry(
        "tser_cli.losses.feature",
        "cross entropy, and the teacher's features of every stage as targets",
        "after Romero et al., ICLR 2015, arXiv 1412.6550",
        separated=False,
        weights={"feature_weight": 100.0},
    ),
    "kd_feature": MethodEntry(
        "tser_cli.losses.kd_feature",
        "kd and feature together",
        "the combination that Yu et al., CVPR 2025, compare with",
        separated=False,
        weights={"feature_weight": 100.0},
    ),
    "bkd": MethodEntry(
        "tser_cli.losses.bkd",
        "blurred features of the last stage, and logits weighted by the student's error",
        "Xu et al. (BKDSNN), ECCV 2024",
        separated=False,
        weights={"temperature": 2.0, "feature_weight": 7e-5},
    ),
    "tsd": MethodEntry(
        "tser_cli.losses.tsd",
        "ts, with the mean of the right steps as a second teacher",
        "temporal decoupling, ICML 2025",
        weights={"temperature": 3.0, "alpha": 0.2, "beta": 0.5},
    ),
    "seal": MethodEntry(
        "tser_cli.losses.seal",
        "errors levelled before the KL, and each step taught by the others",
        "SEAL, 2026",
        weights={"temperature": 3.0, "alpha": 0.6, "beta": 0.15},
    ),
    "tet": MethodEntry(
        "tser_cli.losses.tet",
        "cross entropy at every step, logits held near 1; no teacher",
        "Deng et al., ICLR 2022, arXiv 2202.11946",
        needs_teacher=False,
        weights={"lam": 0.05},
    ),
    "dkd": MethodEntry(
        "tser_cli.losses.dkd",
        "target and other classes distilled apart, at every step",
        "Zhao et al., CVPR 2022, arXiv 2203.08679",
        weights={"temperature": 4.0, "alpha": 1.0, "beta": 8.0},
    ),
}


def lookup(kind: str, table: Mapping[str, E], name: str) -> E:
    """The entry of `name`; raises ConfigError that lists the known names otherwise."""
    if name not in table:
        raise ConfigError(unknown(kind, name, table))
    return table[name]


def load(target: str) -> Any:
    """The object behind "module:object", or the module itself behind "module"."""
    module, _, attribute = target.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded
