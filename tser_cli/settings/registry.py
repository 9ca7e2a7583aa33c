"""Names a user can type, and where the code behind them lives.

A new data set, model or method is one file and one entry here. This module imports nothing
heavy: `tser --help` and `tser methods` read it without torch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tser_cli.base.errors import ConfigError, unknown

if TYPE_CHECKING:
    from tser_cli.settings.sections import MethodSettings


@dataclass(frozen=True)
class DatasetEntry:
    """A data set: `target` is a loader `(DataConfig) -> Dataset`; the recipes are its defaults.

    Those for small images are taken where it names none.
    `own_images`: its images are whatever lies in `data.dir`, so that another folder is other data.
    """

    target: str
    teacher_recipe: str = "imagefolder/resnet34_teacher"
    student_recipe: str = "imagefolder/resnet18_tser"
    own_images: bool = False


@dataclass(frozen=True)
class ModelEntry:
    """An architecture: `target` builds it; `spiking_only` where it makes no sense as an ANN."""

    target: str
    spiking_only: bool = False


@dataclass(frozen=True)
class MethodEntry:
    """A training objective: `target` is its module, see `tser_cli.losses.base`.

    The others are what its parts are called there.
    """

    target: str
    settings_name: str = "Settings"
    loss_name: str = "loss"
    adapters_name: str = "make_adapters"

    @property
    def settings(self) -> type[MethodSettings]:
        """Return the class of its settings, which describes it; found without torch."""
        found: type[MethodSettings] = load(f"{self.target}:{self.settings_name}")
        return found

    @property
    def loss(self) -> Any:
        """Its function `(outputs, settings) -> terms`."""
        return load(f"{self.target}:{self.loss_name}")

    @property
    def make_adapters(self) -> Any:
        """Its maker of adapters, None where it compares no features."""
        return getattr(load(self.target), self.adapters_name, None)

    @property
    def needs_teacher(self) -> bool:
        """Return whether it learns from a teacher."""
        return self.settings.needs_teacher


Entry = DatasetEntry | ModelEntry | MethodEntry
E = TypeVar("E")
F = TypeVar("F", bound=Callable[..., Any])

DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        "tser_cli.data.builtin:digits", "digits/resnet34_teacher", "digits/resnet18_tser"
    ),
    "mnist": DatasetEntry(
        "tser_cli.data.builtin:mnist",
        "fashion-mnist/resnet34_teacher",
        "fashion-mnist/resnet18_tser",
    ),
    "fashion-mnist": DatasetEntry(
        "tser_cli.data.builtin:fashion_mnist",
        "fashion-mnist/resnet34_teacher",
        "fashion-mnist/resnet18_tser",
    ),
    "cifar10": DatasetEntry(
        "tser_cli.data.builtin:cifar10", "cifar10/resnet34_teacher", "cifar10/resnet18_tser"
    ),
    "cifar100": DatasetEntry(
        "tser_cli.data.builtin:cifar100", "cifar100/resnet34_teacher", "cifar100/resnet18_tser"
    ),
    "imagenet": DatasetEntry(
        "tser_cli.data.own:imagenet",
        "imagenet/resnet34_teacher",
        "imagenet/sew_resnet18_tser",
    ),
    "imagefolder": DatasetEntry("tser_cli.data.own:imagefolder", own_images=True),
    "npz": DatasetEntry("tser_cli.data.own:npz", own_images=True),
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

LADDER = "tser_cli.losses.ladder"
METHODS: dict[str, MethodEntry] = {
    "ce": MethodEntry(LADDER, "CeSettings", "ce"),
    "kd": MethodEntry(LADDER, "KdSettings", "kd"),
    "tskl": MethodEntry(LADDER, "TsklSettings", "tskl"),
    "tsce": MethodEntry(LADDER, "TsceSettings", "tsce"),
    "ts": MethodEntry(LADDER, "TsSettings", "ts"),
    "tser": MethodEntry(LADDER, "TserSettings", "tser"),
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
    """Return the entry of `name`; raises ConfigError that lists the known names otherwise."""
    if name not in table:
        raise ConfigError(unknown(kind, name, table))
    return table[name]


def load(target: str) -> Any:
    """Return the object behind "module:object", or the module itself behind "module"."""
    module, _, attribute = target.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


# what each kind of name is registered in, and the settings that hold such a name
TABLES: dict[str, dict[str, Any]] = {"method": METHODS, "model": MODELS, "data set": DATASETS}
NAMED_BY = {
    "method.name": "method",
    "model.student": "model",
    "model.teacher": "model",
    "data.name": "data set",
}


def names() -> list[str]:
    """Return all that is registered, as "method kd", "model resnet18", "data set digits"."""
    return [f"{kind} {name}" for kind, table in TABLES.items() for name in table]


def is_built_in(target: str) -> bool:
    """Return whether a target is the package's own."""
    return target.split(".")[0] == "tser_cli"


def used_by(values: Mapping[str, Any]) -> list[str]:
    """Return what settings by dotted key name, in the form of `names`."""
    return [f"{kind} {values[key]}" for key, kind in NAMED_BY.items() if key in values]


def targets_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the targets behind what settings name: {"method dkd": "tser_cli.losses.dkd"}."""
    named = [(kind, values.get(key)) for key, kind in NAMED_BY.items()]
    return {
        f"{kind} {name}": TABLES[kind][name].target for kind, name in named if name in TABLES[kind]
    }


def add(kind: str, name: str, entry: Any) -> None:
    """Register an entry. Raises ConfigError where the name is taken, or is none."""
    if not re.fullmatch(r"[A-Za-z][\w+.-]*", name):
        raise ConfigError(f'"{name}" is no name for a {kind}: letters, digits, _, + and - make one')
    if name in TABLES[kind]:
        raise ConfigError(f'it registers the {kind} "{name}", which there is already')
    TABLES[kind][name] = entry


def add_method(settings: type[MethodSettings], make_adapters: F | None = None) -> Callable[[F], F]:
    """Register the function below as a training method: `@add_method(Settings)`.

    Its name is the default of `Settings.name`. `make_adapters`: see `tser_cli.losses.base`. All of
    them belong to the module's top level. Raises ConfigError where the name is taken.
    """

    def register(loss: F) -> F:
        parts = [settings.__qualname__, loss.__qualname__]
        if make_adapters is not None:
            parts.append(make_adapters.__qualname__)
        entry = MethodEntry(loss.__module__, *parts)
        add("method", str(settings.model_fields["name"].default), entry)
        return loss

    return register


def add_model(name: str, spiking_only: bool = False) -> Callable[[F], F]:
    """Register the function or class below as an architecture: `(Build) -> nn.Module`.

    Raises ConfigError where the name is taken.
    """

    def register(build: F) -> F:
        target = f"{build.__module__}:{build.__qualname__}"
        add("model", name, ModelEntry(target, spiking_only))
        return build

    return register


def add_dataset(name: str, **of_entry: Any) -> Callable[[F], F]:
    """Register the function below as a data set: `(DataConfig) -> Dataset`.

    `of_entry`: the recipes and `own_images` of a `DatasetEntry`. Raises ConfigError where the name
    is taken.
    """

    def register(loader: F) -> F:
        target = f"{loader.__module__}:{loader.__qualname__}"
        add("data set", name, DatasetEntry(target, **of_entry))
        return loader

    return register
