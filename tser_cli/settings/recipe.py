"""Recipes and the other sources of settings, merged into one Config.

Precedence: defaults < recipe < `TSER_*` variables < flags. All errors of all sources are
collected and reported at once, each with its source, its key and the nearest valid key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tser_cli.base.errors import MOST_REPORTED, ConfigError, cut, nearest
from tser_cli.base.files import is_unicode, parse_toml, read_toml
from tser_cli.settings import config as settings
from tser_cli.settings import plugins, registry
from tser_cli.settings.config import METHOD, STUDENT, Config
from tser_cli.settings.fields import flatten, split
from tser_cli.settings.names import nearest_key

ENV_PREFIX = "TSER_"
ENV_OTHER = {"TSER_RUNS_DIR", plugins.VARIABLE}
ABLATION = "ablation"
DATASET = "digits"  # where none is named
SHOWN = 80


@dataclass(frozen=True)
class Layer:
    """Settings from one source: `source` names it for messages, `values` has dotted keys.

    The weights in a recipe (`is_recipe`) belong to its method: another method goes without them.
    Sizes and neurons belong to its student in the same way, see `settings.of_network`.
    """

    source: str
    values: dict[str, Any]
    is_recipe: bool = False

    @property
    def method(self) -> str:
        """Return the method that the weights in this layer are for."""
        return str(self.values.get(METHOD, registry.DEFAULT_METHOD))

    def weights(self) -> dict[str, Any]:
        """Return what it says of the method besides its name."""
        return {k: v for k, v in self.values.items() if k.startswith("method.") and k != METHOD}

    def of_others(self, method: str, student: str) -> dict[str, list[str]]:
        """Return the keys in a recipe that are for another method or student, by its name."""
        if not self.is_recipe:
            return {}
        found = {self.method: list(self.weights())} if self.method != method else {}
        network = str(self.values.get(STUDENT, student))
        apart = settings.of_network(network, student, self.values)
        return found | ({network: [k for k in self.values if k in apart]} if apart else {})

    def without(self, keys: Iterable[str]) -> Layer:
        """Return the same without these keys."""
        left_out = set(keys)
        return replace(self, values={k: v for k, v in self.values.items() if k not in left_out})


def resolve(layers: Iterable[Layer]) -> Config:
    """Return the Config of all layers, the later winning. Raises ConfigError with every problem.

    What a recipe says for another method or student than the chosen one is left out (`left_out`).
    """
    layers = list(layers)
    method, student, valid = chosen_method(layers), chosen_student(layers), settings.keys()
    read = settings.keys(
        method if method in registry.METHODS else None,
        student if student in registry.MODELS else None,
    )
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}  # of each key: the source that set it, for messages
    # put into words below: the hint for a mistyped key compares it with all keys, which is too slow
    # for thousands of them
    problems: list[Callable[[], str]] = []
    for layer in layers:
        layer = layer.without(chain(*layer.of_others(method, student).values()))
        for key, value in layer.values.items():
            if key not in valid or key not in read or not _is_text(value):
                problems.append(partial(_unusable, layer.source, key, value, method, student))
            else:
                merged[key], origin[key] = value, layer.source
    _as_many_frames(layers, merged, origin)
    try:
        config = Config.model_validate(split(merged))
    except ValidationError as error:
        for detail in error.errors():
            problems.append(partial(_invalid, detail, origin))
    if problems:
        told = [words() for words in problems[:MOST_REPORTED]]
        more = len(problems) - len(told)
        raise ConfigError("\n".join([*told, *([f"and {more:,} more problems"] if more else [])]))
    return config


def _as_many_frames(
    layers: Iterable[Layer], merged: dict[str, Any], origin: dict[str, str]
) -> None:
    """Of events, make data.frames and model.timesteps what the uppermost layer says of either.

    Where it names both, the time steps count.
    """
    entry = registry.DATASETS.get(str(merged.get("data.name", DATASET)))
    both = (settings.FRAMES, settings.TIMESTEPS)
    stated = [key for layer in layers for key in both if key in layer.values]
    if entry is None or not entry.events or not stated:
        return
    key = stated[-1]
    if merged[key] != 0:  # frames of 0: the data will say
        for one in both:
            merged[one], origin[one] = merged[key], origin[key]


def chosen_method(layers: Iterable[Layer]) -> str:
    """Return the method that the uppermost layer names."""
    named = [layer.method for layer in layers if METHOD in layer.values]
    return named[-1] if named else registry.DEFAULT_METHOD


def chosen_student(layers: Iterable[Layer]) -> str:
    """Return the student that the uppermost layer names."""
    named = [str(layer.values[STUDENT]) for layer in layers if STUDENT in layer.values]
    return named[-1] if named else registry.DEFAULT_STUDENT


def left_out(layers: Iterable[Layer]) -> list[str]:
    """Return lines on what the chosen method and student go without of a recipe, for people."""
    layers, lines = list(layers), []
    method, student = chosen_method(layers), chosen_student(layers)
    for layer in layers:
        for name, keys in layer.of_others(method, student).items():
            # A run's config.toml states every one: only those that are not the default are news.
            entry, stated = registry.METHODS.get(name), {k: layer.values[k] for k in keys}
            if entry:
                own = flatten({"method": entry.settings.weights()})
                known, chosen = own if own.keys() == stated.keys() else {}, method
            else:
                network = name if name in registry.MODELS else None
                known, chosen = settings.keys(student=network), student
            news = {k: v for k, v in stated.items() if k not in known or known[k] != v}
            listed = ", ".join(f"{key} = {_shown(value)}" for key, value in news.items())
            if listed:
                lines.append(f"{layer.source}: {listed}: {name}'s, left out for {chosen}")
    return lines


def read(name: str) -> Layer:
    """Return the settings in a recipe file. Raises ConfigError where it is not TOML of sections.

    Its [ablation] section, if any, is no setting of a run: see `read_ablation`.
    """
    path, document = _document(name)
    stated = flatten({k: v for k, v in document.items() if k != ABLATION})
    return Layer(f"recipe {path}", stated, is_recipe=True)


def read_ablation(name: str) -> dict[str, Any]:
    """Return what a recipe says `tser ablate` shall vary; {} without that section.

    Raises ConfigError.
    """
    path, document = _document(name)
    section = document.get(ABLATION, {})
    if not isinstance(section, dict):
        raise ConfigError(f"recipe {path}: {ABLATION} must be a section, [{ABLATION}]")
    return section


def _document(name: str) -> tuple[Path, dict[str, Any]]:
    path = find(name)
    try:
        return path, read_toml(path)
    except (ValueError, OSError) as error:
        raise ConfigError(f"recipe {path} can't be read: {error}") from error


def find(name: str) -> Path:
    """Return the file of a recipe given by path or by packaged name. Raises ConfigError."""
    # A name too long, a folder that is closed or a ~user that is unknown is no file.
    with suppress(OSError, RuntimeError):
        path = Path(name).expanduser()
        for candidate in (path, path / "config.toml"):
            if candidate.is_file():
                return candidate
    names, packaged = available(), name.removesuffix(".toml")
    if packaged in names:
        return recipes_dir() / f"{packaged}.toml"
    raise ConfigError(
        f'no recipe "{name}"{nearest(name, names)}: it is neither a file nor a packaged recipe. '
        f"Packaged: {', '.join(names)}"
    )


def available() -> list[str]:
    """Return the names of the packaged recipes, such as `cifar100/resnet18_tser`."""
    root = recipes_dir()
    # config.toml: the settings of a packaged student, which is named as a run
    found = (path for path in root.rglob("*.toml") if path.name != "config.toml")
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in found)


def recipes_dir() -> Path:
    """Return the folder of packaged recipes: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def from_environment(environment: Mapping[str, str]) -> Layer:
    """TSER_OPTIMIZER_LR=0.05 -> optimizer.lr. Unknown names are found by `resolve`."""
    values = {}
    for name, text in environment.items():
        if not name.startswith(ENV_PREFIX) or name in ENV_OTHER:
            continue
        # an underscore stands for the dot: no section has one in its name
        section, _, rest = name.removeprefix(ENV_PREFIX).lower().partition("_")
        key = f"{section}.{rest}" if rest else section
        values[key] = _typed(key, text)
    return Layer("environment variables TSER_*", values)


def from_assignments(assignments: Iterable[str]) -> Layer:
    """`--set key=value` pairs. Raises ConfigError for a pair without "="."""
    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: write --set section.key=value")
        values[key.strip()] = _typed(key.strip(), text.strip())
    return Layer("--set", values)


def from_flags(flags: Mapping[str, Any]) -> Layer:
    """Flags by dotted key; None means that the flag was not given."""
    return Layer("command line", {key: value for key, value in flags.items() if value is not None})


def defaults(kind: str, upper: list[Layer]) -> list[str]:
    """Return the recipes for a teacher or a student of what the layers name, the later winning.

    The data set's, and above it that of a student which has one. Raises ConfigError for an unknown
    data set.
    """
    entry = registry.MODELS.get(chosen_student(upper)) if kind == "student" else None
    own = [entry.student_recipe] if entry and entry.student_recipe else []
    return [default(kind, upper), *own]


def default(kind: str, upper: Iterable[Layer]) -> str:
    """Return the recipe for a teacher or a student of the data set that the layers name.

    Raises ConfigError for an unknown data set.
    """
    named = [name for layer in upper if (name := layer.values.get("data.name"))]
    entry = registry.lookup("data set", registry.DATASETS, str(named[-1] if named else DATASET))
    return entry.teacher_recipe if kind == "teacher" else entry.student_recipe


def with_plugins(layers: list[Layer]) -> list[Layer]:
    """Import the plug-ins that the layers name; return them with one more, which names them all.

    A student that is named MODULE:NAME or FILE.py:NAME is one of them. Raises ConfigError.
    """
    for layer in layers:
        named = layer.values.get("plugins", [])
        if isinstance(named, list):
            plugins.load(name for name in map(str, named) if not plugins.is_loaded(name))
    # the one that counts: another may be of a file that is not here
    over = next((one for one in reversed(layers) if STUDENT in one.values), Layer("", {}))
    student = {k: plugins.add_network(str(v)) for k, v in over.values.items() if k == STUDENT}
    named = replace(over, values={**over.values, **student})
    layers = [named if layer is over else layer for layer in layers]
    return [*layers, Layer("plug-ins", {"plugins": plugins.stated()})]


def parse_value(text: str) -> Any:
    """`text` as a TOML value where it is one, else as the string itself."""
    try:
        document = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return document["value"] if len(document) == 1 else text


def _typed(key: str, text: str) -> Any:
    # A key that holds text takes it as it was typed: a folder may be called 2024 or 2024-05-01.
    value = parse_value(text)
    holds_text = isinstance(settings.keys().get(key), str)
    return text if holds_text and not isinstance(value, str) else value


def _unusable(source: str, key: str, value: Any, method: str, student: str) -> str:
    """Return the message for a key that `resolve` can't take."""
    valid = settings.keys()
    if key not in valid:
        hint = nearest_key(key, dotted=True) if len(key) <= SHOWN else ""
        return f'{source}: unknown key "{cut(key, SHOWN)}"{hint}'
    if _is_text(value):
        return f"{source}: {settings.unread(key, method, student)}"
    return f"{source}: {key} = {_shown(value)}: it is not UTF-8"


def _is_text(value: Any) -> bool:
    # bytes of the command line that are no UTF-8 come as lone surrogates, which no file can hold
    try:
        return is_unicode(str(value))
    except ValueError:  # a number of thousands of digits is an error later
        return True


def _invalid(detail: Any, origin: Mapping[str, str]) -> str:
    """Return the message for what pydantic found."""
    key = ".".join(str(part) for part in detail["loc"][:2])
    message = str(detail["msg"]).removeprefix("Value error, ")
    # A rule over a whole section has no key: the last source that wrote to the section is at fault.
    of_section = [source for set_key, source in origin.items() if set_key.startswith(f"{key}.")]
    source = origin.get(key, of_section[-1] if of_section else "settings")
    if message.startswith("unknown "):
        return f"{source}: {key}: {message}"
    if key not in origin:
        return f"{source}: {message}"
    return f"{source}: {key} = {_shown(detail['input'])}: {message}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not write a number of thousands of digits
        return "a number too long to show"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
