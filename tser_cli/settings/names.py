"""What people call a setting: the dotted key, its last word, a flag, or what other tools say."""

from __future__ import annotations

from collections.abc import Iterable

from tser_cli.base.errors import ConfigError, closest
from tser_cli.settings.config import keys

# Flags whose name is not the last part of their key.
FLAGS = {"T": "model.timesteps", "dataset": "data.name", "energy_budget": "energy.budget"}
# Symbols that stand for more than one setting where people write of this field.
SYMBOLS = {
    "tau": ("method.temperature", "neuron.tau"),
    "alpha": ("method.alpha", "neuron.surrogate_alpha"),
}

# What other tools call the last word of a key.
ELSEWHERE = {"learning_rate": "lr", "wd": "weight_decay", "bs": "batch_size", "num_steps": "T"}


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
    last = name.rpartition(".")[2]
    found = _meanings(name, shown) or _meanings(ELSEWHERE.get(last, last), shown)
    if len(found) > 1:
        return f": it may mean {' or '.join(found)}"
    if found:  # under another section, or as others call it
        return f' (did you mean "{found[0]}"?)'
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
