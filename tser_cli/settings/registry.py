"""Names a user can type, and where the code behind them lives.

A new data set, model or method is one file and one entry here. This module imports nothing
heavy: `tser --help` and `tser list` read it without torch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tser_cli.base.errors import ConfigError, unknown
from tser_cli.base.files import is_folder

if TYPE_CHECKING:
    from tser_cli.settings.config import MethodSettings, ModelConfig


@dataclass(frozen=True)
class DatasetEntry:
    """A data set: `target` is a loader `(DataConfig) -> Dataset`; the recipes are its defaults.

    `own_images`: its images are whatever lies in `data.dir`, so that another folder is other data.
    `events`: its samples have a time axis, so that `data.frames` says something.
    """

    target: str
    teacher_recipe: str = "imagefolder/resnet34_teacher"
    student_recipe: str = "imagefolder/resnet18_tser"
    own_images: bool = False
    events: bool = False


def _own_recipes(target: str, folder: str, student: str = "resnet18_tser") -> DatasetEntry:
    return DatasetEntry(target, f"{folder}/resnet34_teacher", f"{folder}/{student}")


@dataclass(frozen=True)
class ModelEntry:
    """An architecture: `target` builds it; `spiking_only` where it makes no sense as an ANN.

    `own`: it is named MODULE:NAME, and need not take a `Build`; it may be a module itself.
    `settings_name`: the class of [model] where it has settings, and neurons, of its own.
    `student_recipe`: where no recipe is named, it stands above the data set's.
    """

    target: str
    spiking_only: bool = False
    own: bool = False
    settings_name: str = "tser_cli.settings.config:ModelConfig"
    student_recipe: str = ""

    @property
    def settings(self) -> type[ModelConfig]:
        """The class of [model] for it; found without torch."""
        found: type[ModelConfig] = load(self.settings_name)
        return found


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
        """The class of its settings, which describes it; found without torch."""
        found: type[MethodSettings] = load(f"{self.target}:{self.settings_name}")
        return found

    @property
    def loss(self) -> Any:
        """Its function `(outputs, settings) -> terms`."""
        return load(f"{self.target}:{self.loss_name}")

    @property
    def make_adapters(self) -> Any:
        """Its maker of adapters, None where it compares no features."""
        try:
            return load(f"{self.target}:{self.adapters_name}")
        except AttributeError:
            return None

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns from a teacher."""
        return self.settings.needs_teacher


Entry = DatasetEntry | ModelEntry | MethodEntry
E = TypeVar("E")
F = TypeVar("F", bound=Callable[..., Any])

DATASETS: dict[str, DatasetEntry] = {
    "digits": _own_recipes("tser_cli.data.builtin:digits", "digits"),
    "mnist": _own_recipes("tser_cli.data.builtin:mnist", "fashion-mnist"),
    "fashion-mnist": _own_recipes("tser_cli.data.builtin:fashion_mnist", "fashion-mnist"),
    "cifar10": _own_recipes("tser_cli.data.builtin:cifar10", "cifar10"),
    "cifar100": _own_recipes("tser_cli.data.builtin:cifar100", "cifar100"),
    "imagenet": _own_recipes("tser_cli.data.own:imagenet", "imagenet", "sew_resnet18_tser"),
    "imagefolder": DatasetEntry("tser_cli.data.own:imagefolder", own_images=True),
    "npz": DatasetEntry("tser_cli.data.own:npz", own_images=True),
    # whatever lies in the folder in the sets' formats, a part of them or simulated events too
    **{
        name: DatasetEntry(
            f"tser_cli.data.events:{load}",
            f"{name}/resnet20_teacher",
            f"{name}/sew_resnet20_tser",
            own_images=True,
            events=True,
        )
        for name, load in (
            ("n-mnist", "n_mnist"),
            ("cifar10-dvs", "cifar10_dvs"),
            ("dvs-gesture", "dvs_gesture"),
            ("events", "events"),
        )
    },
}

RESNETS = ("resnet18", "resnet19", "resnet20", "resnet34", "resnet50")
SEW_RESNETS = ("sew_resnet18", "sew_resnet20", "sew_resnet34")
MODELS: dict[str, ModelEntry] = {
    **{name: ModelEntry(f"tser_cli.models.resnet:{name}") for name in RESNETS},
    **{name: ModelEntry(f"tser_cli.models.resnet:{name}", True) for name in SEW_RESNETS},
    **{name: ModelEntry(f"tser_cli.models.vgg:{name}") for name in ("vgg11", "vgg16")},
    **{
        name: ModelEntry(
            f"tser_cli.models.zoo:{family}",
            spiking_only=True,
            settings_name=f"tser_cli.models.sizes:{sizes}",
            student_recipe="students/" + ("tiny" if name.endswith("_tiny") else "transformer"),
        )
        for name, family, sizes in (
            ("ms_resnet18", "ms_resnet", "MsResNet18"),
            ("ms_resnet34", "ms_resnet", "MsResNet34"),
            ("ms_resnet_tiny", "ms_resnet", "MsResNetTiny"),
            ("spikformer", "spikformer", "SpikformerSizes"),
            ("spikformer_tiny", "spikformer", "SpikformerTiny"),
            ("sdt", "sdt", "SdtSizes"),
            ("sdt_tiny", "sdt", "SdtTiny"),
            ("qkformer", "qkformer", "QkformerSizes"),
            ("qkformer_tiny", "qkformer", "QkformerTiny"),
            ("maxformer", "maxformer", "MaxformerSizes"),
            ("maxformer_tiny", "maxformer", "MaxformerTiny"),
        )
    },
}
DEFAULT_STUDENT = "resnet18"

LADDER = "tser_cli.losses.ladder"
METHODS: dict[str, MethodEntry] = {
    # the ladder of the paper's ablation: one file, since each differs from the last in one thing
    **{
        name: MethodEntry(LADDER, f"{name.capitalize()}Settings", name)
        for name in ("ce", "kd", "tskl", "tsce", "ts", "tser")
    },
    "feature": MethodEntry("tser_cli.losses.feature"),
    "kd_feature": MethodEntry("tser_cli.losses.feature", "KdFeatureSettings", "kd_feature"),
    **{
        name: MethodEntry(f"tser_cli.losses.{name}")
        for name in ("bkd", "tsd", "seal", "tet", "dkd")
    },
}
DEFAULT_METHOD = "tser"


def lookup(kind: str, table: Mapping[str, E], name: str) -> E:
    """Return the entry of `name`; raises ConfigError that lists the known names otherwise."""
    if name not in table:
        raise ConfigError(unknown_name(kind, name, table))
    return table[name]


def ann_beside(name: str) -> str:
    """Return what to take as an ANN in place of an architecture that has no such form."""
    plain = name.removeprefix("sew_")
    return plain if plain != name else "a residual network or a VGG, such as resnet34"


def unknown_name(kind: str, name: str, table: Mapping[str, Any]) -> str:
    """Return the message for a name that is not in `table`; a path is no name of a data set."""
    reader = "imagefolder" if is_folder(Path(name)) else "npz" if name.endswith(".npz") else ""
    if kind == "data set" and reader:
        return f'"{name}" is a path, not a data set: --dataset {reader} --data-dir {name}'
    return unknown(kind, name, table)


# What plug-ins register, by target. Its name in its module would not do: functions that a loop
# defines share one, and the last is left.
KEPT: dict[str, Any] = {}


def keep(registered: str, made: Any) -> str:
    """Keep what a plug-in registers, as "model net"; return its target."""
    module = getattr(made, "__module__", type(made).__module__)
    KEPT[f"{module}:{registered}"] = made
    return f"{module}:{registered}"


def load(target: str) -> Any:
    """Return the object behind "module:object", or the module itself behind "module"."""
    if target in KEPT:
        return KEPT[target]
    # by name, so that a list of names, or another method's settings, imports none of the others
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
    # a plug-in called tser_cli_mine is none of ours
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

    Its name is the default of `Settings.name`. `make_adapters`: see `tser_cli.losses.base`. Raises
    ConfigError where the name is taken.
    """

    def register(loss: F) -> F:
        name = str(settings.model_fields["name"].default)
        module, _, _ = keep(f"method {name}", loss).partition(":")
        entry = MethodEntry(
            module, *(f"{part} {name}" for part in ("settings", "method", "adapters"))
        )
        add("method", name, entry)
        KEPT[f"{module}:{entry.settings_name}"] = settings
        if make_adapters is not None:
            KEPT[f"{module}:{entry.adapters_name}"] = make_adapters
        return loss

    return register


def add_model(name: str, spiking_only: bool = False) -> Callable[[F], F]:
    """Register the function or class below as an architecture: `(Build) -> nn.Module`.

    Raises ConfigError where the name is taken, or another name has the same function: one that a
    loop defines reads the loop's variable when it is called, and would build the last for all.
    """

    def make(target: str) -> ModelEntry:
        twins = [
            other
            for other, entry in MODELS.items()
            if entry.target in KEPT and _alike(KEPT[entry.target], KEPT[target]) and other != name
        ]
        if twins:
            raise ConfigError(
                f"it registers {twins[0]} and {name} by functions that build the same; bind what a "
                "loop varies, as in: def build(b, width=width)"
            )
        return ModelEntry(target, spiking_only)

    return _adding("model", name, make)


def _alike(one: Any, other: Any) -> bool:
    """Return whether two functions or classes differ in nothing but the moment of their making."""
    parts = _bound(one), _bound(other)
    same = len(parts[0]) == len(parts[1]) and all(a is b for a, b in zip(*parts, strict=True))
    return same and one is not other


def _bound(made: Any) -> list[Any]:
    """Return the code and the values of a function, or of all functions of a class."""
    if isinstance(made, type):
        own = {k: v for k, v in vars(made).items() if k not in ("__dict__", "__weakref__")}
        return [part for name, value in own.items() for part in (name, *_bound(value))]
    made = getattr(made, "__func__", made)  # of a static or a class method
    code = getattr(made, "__code__", None)
    if code is None:
        return [made]
    # __class__ is what super() reads: the class itself
    free = zip(code.co_freevars, made.__closure__ or (), strict=True)
    cells = [cell.cell_contents for name, cell in free if name != "__class__"]
    return [code, *(made.__defaults__ or ()), *(made.__kwdefaults__ or {}).values(), *cells]


def add_dataset(name: str, **of_entry: Any) -> Callable[[F], F]:
    """Register the function below as a data set: `(DataConfig) -> Dataset`.

    `of_entry`: the recipes and `own_images` of a `DatasetEntry`. Raises ConfigError where the name
    is taken.
    """
    return _adding("data set", name, lambda target: DatasetEntry(target, **of_entry))


def _adding(kind: str, name: str, make: Callable[[str], Entry]) -> Callable[[F], F]:
    def register(made: F) -> F:
        add(kind, name, make(keep(f"{kind} {name}", made)))
        return made

    return register
