"""The settings of a run, joined and named. Reading recipes: `tser_cli.recipe`.

A `Config` is immutable and complete: it alone (with the code) says what a run does. Its settings
are known by dotted keys (`method.name`) and, to people, by short names (`method`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

from pydantic import Field

from tser_cli import registry
from tser_cli.errors import ConfigError, nearest
from tser_cli.fields import Policy, Section, flatten, split
from tser_cli.sections import (
    CHECKPOINT_EVERY,
    AugmentConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    NeuronConfig,
    OptimizerConfig,
    PerformanceConfig,
    ScheduleConfig,
    TrainingConfig,
)

__all__ = [
    "CHECKPOINT_EVERY",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "MethodConfig",
    "ModelConfig",
    "NeuronConfig",
    "OptimizerConfig",
    "PerformanceConfig",
    "ScheduleConfig",
    "TrainingConfig",
    "full_key",
    "keys",
    "keys_where",
    "policies",
    "short_name",
]


class Config(Section):
    """Everything that a run depends on."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    neuron: NeuronConfig = NeuronConfig()
    method: MethodConfig = Field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    performance: PerformanceConfig = PerformanceConfig()

    def flat(self) -> dict[str, Any]:
        """Every setting by dotted key, as plain values: {"data.name": "digits", ...}."""
        return flatten(self.model_dump(mode="json"))

    def updated(self, changes: dict[str, Any]) -> Config:
        """A copy with dotted keys changed, as {"training.epochs": 3}; validated again."""
        return Config.model_validate(split({**self.flat(), **changes}))

    def policy(self, key: str) -> Policy:
        """The policy of a dotted key. `data.dir` counts where it says which images there are."""
        policy = policies().get(key, Policy())
        if key == "data.dir" and registry.DATASETS[self.data.name].own_images:
            return replace(policy, results=True, resume=False)
        return policy

    def result_settings(self) -> dict[str, Any]:
        """The settings that the results depend on, by dotted key."""
        return {key: value for key, value in self.flat().items() if self.policy(key).results}


def keys() -> dict[str, Any]:
    """Every dotted key with its default."""
    return Config().flat()


@cache
def policies() -> dict[str, Policy]:
    """The policy of every dotted key."""
    return flatten({name: type(section).policies() for name, section in Config()})


def keys_where(holds: Callable[[Policy], bool]) -> frozenset[str]:
    """The dotted keys whose policy is so: `keys_where(lambda policy: policy.measuring)`."""
    return frozenset(key for key, policy in policies().items() if holds(policy))


# Flags whose name is not the last part of their key.
FLAGS = {"T": "model.timesteps", "dataset": "data.name"}
# Symbols that stand for more than one setting where people write of this field.
SYMBOLS = {
    "tau": ("method.temperature", "neuron.tau"),
    "alpha": ("method.alpha", "neuron.surrogate_alpha"),
}


def short_name(key: str) -> str:
    """What tables, figures and messages call a setting: `method.name` -> `method`.

    The flag's name or the key's last part, where `full_key` leads back from it; else the key.
    """
    words = [word for word, flagged in FLAGS.items() if flagged == key and len(word) > 1]
    word = words[0] if words else _last_word(key)
    return word if _meanings(word, keys()) == [key] else key


def full_key(name: str) -> str:
    """The dotted key of a dotted or short name. Raises ConfigError, naming the nearest.

    A short name that may mean several settings is refused with all of them.
    """
    valid = keys()
    if name in valid:
        return name
    found = _meanings(name, valid)
    if len(found) > 1:
        raise ConfigError(f'"{name}" may mean {" or ".join(found)}: write the whole name')
    if not found:
        words = dict.fromkeys([*FLAGS, *(_last_word(key) for key in valid)])
        raise ConfigError(f'unknown key "{name}"{nearest(name, [*words, *valid])}')
    return found[0]


def _last_word(key: str) -> str:
    section, _, name = key.partition(".")
    return section if name == "name" else name


def _meanings(word: str, valid: Iterable[str]) -> list[str]:
    if word in FLAGS:
        return [FLAGS[word]]
    return list(SYMBOLS.get(word, ())) or [key for key in valid if _last_word(key) == word]
