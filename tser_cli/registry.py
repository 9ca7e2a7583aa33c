"""Names a user can type, and where the code behind them lives.

A new data set, model or method is one file and one entry here. This module imports nothing
heavy: `tser --help` and `tser methods` read it without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tser_cli.errors import ConfigError, unknown

if TYPE_CHECKING:
    from tser_cli.sections import MethodSettings


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
    """A training objective: `target` is its module, see `tser_cli.losses.base`."""

    target: str

    @property
    def settings(self) -> type[MethodSettings]:
        """The class of its settings, which describes it; found without torch."""
        found: type[MethodSettings] = load(f"{self.target}:Settings")
        return found

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns from a teacher."""
        return self.settings.needs_teacher


E = TypeVar("E")

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
    "sew_resnet20": ModelEntry("tser_cli.models.resnet:sew_resnet20", spiking_only=True),
    "sew_resnet34": ModelEntry("tser_cli.models.resnet:sew_resnet34", spiking_only=True),
    "vgg11": ModelEntry("tser_cli.models.vgg:vgg11"),
    "vgg16": ModelEntry("tser_cli.models.vgg:vgg16"),
}

METHODS: dict[str, MethodEntry] = {
    "ce": MethodEntry("tser_cli.losses.ce"),
    "kd": MethodEntry("tser_cli.losses.kd"),
    "tskl": MethodEntry("tser_cli.losses.tskl"),
    "tsce": MethodEntry("tser_cli.losses.tsce"),
    "ts": MethodEntry("tser_cli.losses.ts"),
    "tser": MethodEntry("tser_cli.losses.tser"),
    "feature": MethodEntry("tser_cli.losses.feature"),
    "kd_feature": MethodEntry("tser_cli.losses.kd_feature"),
    "bkd": MethodEntry("tser_cli.losses.bkd"),
    "tsd": MethodEntry("tser_cli.losses.tsd"),
    "seal": MethodEntry("tser_cli.losses.seal"),
    "tet": MethodEntry("tser_cli.losses.tet"),
    "dkd": MethodEntry("tser_cli.losses.dkd"),
}
DEFAULT_METHOD = "tser"


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
