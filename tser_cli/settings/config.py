"""The settings of a run, joined and named. Reading recipes: `tser_cli.settings.recipe`.

A `Config` is immutable and complete: it alone (with the code) says what a run does. Its settings
are known by dotted keys (`method.name`) and, to people, by short names (`method`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, field_validator

from tser_cli.base.errors import ConfigError, closest
from tser_cli.settings import registry
from tser_cli.settings.fields import NO_BUDGET, Policy, Section, flatten, split
from tser_cli.settings.sections import (
    CHECKPOINT_EVERY,
    FLOAT_BITS,
    NOTES,
    AugmentConfig,
    DataConfig,
    EnergyConfig,
    MethodSettings,
    ModelConfig,
    NeuronConfig,
    OptimizerConfig,
    PerformanceConfig,
    ScheduleConfig,
    TrainingConfig,
)

# The sections are imported from here by all other rooms.
__all__ = [
    "CHECKPOINT_EVERY",
    "FLOAT_BITS",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "EnergyConfig",
    "MethodSettings",
    "ModelConfig",
    "NeuronConfig",
    "OptimizerConfig",
    "PerformanceConfig",
    "ScheduleConfig",
    "TrainingConfig",
]

METHOD = "method.name"
EPOCHS = "training.epochs"
# What a weight adds to a method that would go without it, as results then name the method.
ADDED = {"entropy": "entropy_weight", "rate": "rate_weight"}
ENDLESS = ("constant", "step")  # schedules in which no learning rate depends on the last epoch


class Config(Section):
    """Everything that a run depends on. `method` is of the class that the chosen method has.

    `plugins` are imported by the command line (`tser_cli.settings.plugins`), never by reading them.
    """

    plugins: Annotated[tuple[str, ...], NOTES] = ()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    neuron: NeuronConfig = NeuronConfig()
    method: SerializeAsAny[MethodSettings] = Field(
        default_factory=lambda: registry.METHODS[registry.DEFAULT_METHOD].settings()
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    energy: EnergyConfig = EnergyConfig()
    performance: PerformanceConfig = PerformanceConfig()

    @field_validator("method", mode="before")
    @classmethod
    def _by_its_method(cls, values: Any) -> MethodSettings:
        if isinstance(values, MethodSettings):
            return values
        stated = {"name": registry.DEFAULT_METHOD, **values}
        entry = registry.METHODS.get(str(stated["name"]))
        # a name that is none is an error of the base class, which all methods share
        chosen = entry.settings if entry else MethodSettings
        return chosen.model_validate(stated if entry else {"name": stated["name"]})

    def flat(self) -> dict[str, Any]:
        """Return every setting by dotted key, as plain values: {"data.name": "digits", ...}."""
        return flatten(self.model_dump(mode="json"))

    def updated(self, changes: dict[str, Any]) -> Config:
        """Return a copy with dotted keys changed, as {"training.epochs": 3}; validated again.

        Another method comes with its own weights.
        """
        # by way of plain values: pydantic's own model_copy(update=...) validates nothing
        kept = self.flat()
        if changes.get(METHOD, self.method.name) != self.method.name:
            kept = {key: value for key, value in kept.items() if not key.startswith("method.")}
        return Config.model_validate(split({**kept, **changes}))

    def policy(self, key: str) -> Policy:
        """Return the policy of a dotted key under these settings; two keys depend on others."""
        policy = policies().get(key, Policy())
        if key == "data.dir" and registry.DATASETS[self.data.name].own_images:
            # here the folder says which images there are
            return replace(policy, results=True, resume=False)
        if key == EPOCHS:
            # More epochs only make a run longer where nothing before its end depends on them. A
            # method of a plug-in may read what part of the training is done.
            endless = self.schedule.name in ENDLESS and not self.has_energy_budget
            built_in = registry.is_built_in(registry.METHODS[self.method.name].target)
            return replace(policy, resume=endless and built_in)
        return policy

    @property
    def has_energy_budget(self) -> bool:
        """Return whether the student is trained to an energy budget."""
        return self.energy.budget != NO_BUDGET

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that the results depend on, by dotted key."""
        return {key: value for key, value in self.flat().items() if self.policy(key).results}


def keys(method: str | None = None) -> dict[str, Any]:
    """Return every dotted key with its default: those of all methods, or those that `method` reads.

    A weight that several methods read has the first one's default.
    """
    return dict(_keys((method,) if method else tuple(registry.METHODS)))


@cache  # by the methods that there are: a plug-in may add one
def _keys(methods: tuple[str, ...]) -> dict[str, Any]:
    found = {key: of for key, of in Config().flat().items() if not key.startswith("method.")}
    for settings in (registry.METHODS[name].settings for name in methods):
        weights = flatten({"method": {"name": registry.DEFAULT_METHOD, **settings.weights()}})
        found |= {key: default for key, default in weights.items() if key not in found}
    return found


def readers(key: str) -> list[str]:
    """Return the methods that read a weight: `readers("method.temperature")`."""
    name, methods = key.removeprefix("method."), registry.METHODS.items()
    return [method for method, entry in methods if name in entry.settings.weights()]


def unread(key: str, method: str) -> str:
    """Return the message for a weight that the method has no use for."""
    return f"{key}: {method} does not read it; it is read by {', '.join(readers(key))}"


def method_label(config: Config, varied: Container[str] = ()) -> str:
    """Return the method as results name it: `kd`, or `kd+entropy` where entropy was added to it.

    A weight among the `varied` keys is named elsewhere.
    """
    now, usual = config.method.model_dump(), config.method.weights()
    words = [
        word
        for word, weight in ADDED.items()
        if now[weight] != 0.0 and usual[weight] == 0.0 and f"method.{weight}" not in varied
    ]
    return "+".join([config.method.name, *words])


@cache
def policies() -> dict[str, Policy]:
    """Return the policy of every dotted key."""
    own = Config.policies()
    return flatten(
        {
            name: type(part).policies() if isinstance(part, Section) else own[name]
            for name, part in Config()
        }
    )


def keys_where(holds: Callable[[Policy], bool]) -> frozenset[str]:
    """Return the dotted keys whose policy is so: `keys_where(lambda policy: policy.measuring)`."""
    return frozenset(key for key, policy in policies().items() if holds(policy))


# Flags whose name is not the last part of their key.
FLAGS = {"T": "model.timesteps", "dataset": "data.name", "energy_budget": "energy.budget"}
# Symbols that stand for more than one setting where people write of this field.
SYMBOLS = {
    "tau": ("method.temperature", "neuron.tau"),
    "alpha": ("method.alpha", "neuron.surrogate_alpha"),
}


def short_name(key: str) -> str:
    """Return what tables, figures and messages call a setting: `method.name` -> `method`.

    The flag's name or the key's last part, where `full_key` leads back from it; else the key.
    """
    words = [word for word, flagged in FLAGS.items() if flagged == key and len(word) > 1]
    word = words[0] if words else _last_word(key)
    return word if _meanings(word, keys()) == [key] else key


def full_key(name: str) -> str:
    """Return the dotted key of a dotted or short name. Raises ConfigError, naming the nearest.

    A short name that may mean several settings is an error that lists all of them.
    """
    valid = keys()
    if name in valid:
        return name
    found = _meanings(name, valid)
    if len(found) > 1:
        raise ConfigError(f'"{name}" may mean {" or ".join(found)}: write the whole name')
    if not found:
        raise ConfigError(f'unknown key "{name}"{nearest_key(name)}')
    return found[0]


def nearest_key(name: str, dotted: bool = False) -> str:
    """Return a hint such as ` (did you mean "lr"?)`, among dotted and short names; "" without one.

    `dotted`: where short names will not do, the hint is the key behind the nearest, "optimizer.lr".
    """
    shown = {key: key for key in keys()}
    found = _meanings(name, shown)
    if len(found) > 1:
        return f": it may mean {' or '.join(found)}"
    if "." not in name:
        words = {_last_word(key): key for key in shown} | FLAGS
        shown |= words if dotted else {word: word for word in words}
    word = closest(name, shown)
    return f' (did you mean "{shown[word]}"?)' if word else ""


def _last_word(key: str) -> str:
    section, _, name = key.partition(".")
    return section if name in ("", "name") else name


def _meanings(word: str, valid: Iterable[str]) -> list[str]:
    if word in FLAGS:
        return [FLAGS[word]]
    return list(SYMBOLS.get(word, ())) or [key for key in valid if _last_word(key) == word]
