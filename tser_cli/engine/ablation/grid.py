"""The plan of an ablation: the product of varied settings and seeds, as pure functions."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tser_cli.base.errors import MOST_REPORTED, ConfigError, nearest
from tser_cli.settings import config as settings
from tser_cli.settings import plugins, recipe, registry
from tser_cli.settings.config import METHOD, STUDENT, Config, method_label
from tser_cli.settings.names import full_key, short_name

SECTION_KEYS = ("vary", "seeds", "baseline", "measure", "accuracy_margin", "each")
MEASURES = ("accuracy", "best_validation_accuracy")
DEFAULT_MARGIN = 0.5


def check_section(section: Mapping[str, Any]) -> None:
    """Raise ConfigError with every problem of an [ablation] section."""
    problems = [
        f'unknown key "{key}"{nearest(key, SECTION_KEYS)}. Known: {", ".join(SECTION_KEYS)}'
        for key in section
        if key not in SECTION_KEYS
    ]
    texts = section.get("vary", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        problems.append('vary must be a list, as ["method=ce,kd", "timesteps=1,2"]')
    count = section.get("seeds", 1)
    # true is an int to Python, and no number of seeds
    if not isinstance(count, int) or isinstance(count, bool):
        problems.append(f"seeds = {count!r} must be a whole number")
    if not isinstance(section.get("baseline", ""), str):
        problems.append('baseline must be a text, as "method=kd"')
    margin = section.get("accuracy_margin", DEFAULT_MARGIN)
    if not isinstance(margin, int | float) or isinstance(margin, bool) or not 0 <= margin < 100:
        problems.append(f"accuracy_margin = {margin!r} must be points of percent, 0 or more")
    measure = section.get("measure", MEASURES[0])
    if measure not in MEASURES:
        problems.append(f'measure = "{measure}" must be one of {", ".join(MEASURES)}')
    each = section.get("each", {})
    if not isinstance(each, dict) or not all(isinstance(of, dict) for of in each.values()):
        problems.append("each must have sections, as [ablation.each.kd] with kd_weight = 1")
    if problems:
        raise ConfigError("\n".join(f"[ablation]: {problem}" for problem in problems))


SEED = "training.seed"
ENTROPY = "method.entropy_weight"
TEMPERATURE = "method.temperature"
DEFAULT_SEEDS = 3


@dataclass(frozen=True)
class Cell:
    """One training of an ablation: the varied settings by dotted key, the seed, all settings."""

    varied: dict[str, Any]
    seed: int
    config: Config

    @property
    def key(self) -> tuple[str, ...]:
        """Return the varied settings as texts: what cells of all seeds have in common."""
        return tuple(map(str, self.varied.values()))

    @property
    def label(self) -> str:
        """`method=kd, temperature=4`, without the seed."""
        return ", ".join(f"{short_name(key)}={value}" for key, value in self.varied.items())

    @property
    def title(self) -> str:
        """Return the label and the seed."""
        return f"{self.label}, seed {self.seed}"

    def updated(self, changes: dict[str, Any]) -> Cell:
        """Return the same cell with dotted keys of its settings changed."""
        return replace(self, config=self.config.updated(changes))

    @cached_property
    def in_words(self) -> dict[str, Any]:
        """Return `temperature`, `weights` and `settings`, as `key=value; key=value`.

        `weights` are the method's own settings, `settings` all others that are not tser's defaults
        and not varied. Kept, since the tables are written again after every cell.
        """
        now, usual = self.config.result_settings(), Config().result_settings()
        weights = {key for key in now if key.startswith("method.") and key != METHOD}
        others = now.keys() - weights - self.varied.keys() - {SEED}
        return {
            "temperature": now.get(TEMPERATURE),
            "weights": "; ".join(
                f"{key.removeprefix('method.')}={value}"
                for key, value in now.items()
                if key in weights - {TEMPERATURE}
            ),
            "settings": "; ".join(
                f"{key}={value}"
                for key, value in now.items()
                if key in others and value != usual.get(key)
            ),
        }


@dataclass(frozen=True)
class Request:
    """What is compared: the cells, the varied keys, the baseline, the column that is compared.

    `baseline` holds some of the varied settings: a cell is compared with the one that has these and
    is like it in all others. `notes` say which stated weights do not reach which cells.
    `accuracy_margin`: a fraction; see `early_exit.equal_accuracy`.
    """

    cells: list[Cell]
    axes: list[str]
    baseline: dict[str, Any]
    measure: str
    notes: tuple[str, ...] = ()
    accuracy_margin: float = DEFAULT_MARGIN / 100

    @property
    def names(self) -> list[str]:
        """Return the varied keys as people write them."""
        return [short_name(axis) for axis in self.axes]


def make_request(
    layers: list[recipe.Layer],
    section: dict[str, Any],
    vary: Sequence[str] | None = None,
    seeds: int | None = None,
    baseline: str | None = None,
    margin: float | None = None,
    seed: int | None = None,
    flags: Mapping[str, str] | None = None,
) -> Request:
    """Return the request of flags over the recipe's [ablation] section. Raises ConfigError.

    `seed`: the only one, in the place of several. `flags`: those given of settings, by key.
    `margin`: how far below the baseline's accuracy energies are compared, in points of percent.
    """
    check_section(section)
    if margin is not None and not 0.0 <= margin < 100.0:
        raise ConfigError(f"--accuracy-margin {margin}: it is in points of percent, 0 or more")
    source = "--vary" if vary else "[ablation] vary"
    axes = parse_vary(vary or section.get("vary", []), source)
    layers = recipe.with_plugins(layers)  # again: what is varied may be a network of your own
    own = own_weights(section.get("each", {}), axes, bool(vary))
    # a recipe's baseline is one of its own cells: what --vary makes may have no such cell
    chosen = baseline or ("" if vary else section.get("baseline", ""))
    if not axes:
        raise ConfigError("nothing is varied: give --vary key=value,value or an [ablation] section")
    both = [
        f"{flag} and {source} {short_name(k)}" for k, flag in (flags or {}).items() if k in axes
    ]
    if both:
        raise ConfigError(f"{'; '.join(both)}: a setting is varied or the same for all, not both")
    count = section.get("seeds", DEFAULT_SEEDS) if seeds is None else seeds
    cells = expand(layers, axes, 1 if seed is not None else count, seed or 0, own)
    check_alike(layers, [*axes, *(key for one in own.values() for key in one.values)], axes, cells)
    measure = section.get("measure", MEASURES[0])
    # known now, not after the first training: without such images the column stays empty
    if measure == MEASURES[1] and any(c.config.data.validation_fraction == 0.0 for c in cells):
        raise ConfigError(
            f'[ablation] measure = "{measure}" needs images held out: data.validation_fraction'
        )
    notes = dict[str, None]()  # each once: which stated weights some cells go without
    for method in axes.get(METHOD, [recipe.chosen_method(layers)]):
        vary_method = recipe.Layer("--vary", {METHOD: method})
        notes |= dict.fromkeys(recipe.left_out([*layers, vary_method]))
        for one in layers:
            for key in unread_of(one, axes, method):
                notes[f"{one.source}: {settings.unread(key, method, '')}; its cells go without"] = (
                    None
                )
    points = section.get("accuracy_margin", DEFAULT_MARGIN) if margin is None else margin
    base = choose_baseline(cells, chosen)
    return Request(cells, list(axes), base, measure, tuple(notes), float(points) / 100)


def ablation_name(request: Request, recipe_name: str) -> str:
    """Name an ablation: after the recipe that says what to vary, else after what it compares.

    `digits_resnet20_method`: the data set, the student (where it is one for all) and what varies.
    """
    if recipe_name:
        return recipe_name.replace("/", "_")
    configs = [cell.config for cell in request.cells]
    common = (
        {config.data.name for config in configs},
        {config.model.student for config in configs},
    )
    return "_".join(
        [*(name for names in common if len(names) == 1 for name in names), *request.names]
    )


def parse_vary(texts: Iterable[str], source: str = "--vary") -> dict[str, list[Any]]:
    """["method=ce,kd", "timesteps=1,2"] -> values by dotted key.

    Raises ConfigError with the problems of all texts.
    """
    axes: dict[str, list[Any]] = {}
    problems = []
    for text in texts:
        try:
            key, values = parse_axis(text)
            if key in axes:
                raise ConfigError(f"{short_name(key)} is varied twice")
            axes[key] = values
        except ConfigError as error:
            problems.append(f"{source} {text}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return axes


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """ "timesteps=1,2" -> ("model.timesteps", [1, 2]). Raises ConfigError."""
    name, equals, listed = text.partition("=")
    words = [word.strip() for word in listed.split(",")]
    if not equals or "" in words:
        raise ConfigError("write key=value,value")
    key = full_key(name.strip())
    if key == SEED:
        raise ConfigError("seeds are counted by --seeds, not varied")
    values = []
    for word in words:
        value = recipe.from_assignments([f"{key}={word}"]).values[key]
        # One number has one name, 2.0 is 2 and -0.0 is 0: from 1e15 on Python writes an exponent.
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
        if key == STUDENT:
            value = plugins.add_network(str(value))
        values.append(int(value) if whole else value)
    # compared as values, not as words: 2 and 2.0 are one cell
    twice = [word for place, word in enumerate(words) if values[place] in values[:place]]
    if twice:
        raise ConfigError(f"{twice[0]} stands there twice")
    return key, values


def own_weights(
    each: Mapping[str, Mapping[str, Any]], axes: Mapping[str, list[Any]], by_flag: bool
) -> dict[str, recipe.Layer]:
    """Return the settings of [ablation.each.METHOD] by method: each at its own best, say.

    `by_flag`: --vary chose the methods, so that sections of others have no part. Raises ConfigError
    for a method that is not varied, or a setting that is.
    """
    layers = {}
    for method, weights in each.items():
        source = f"[ablation.each.{method}]"
        if method not in axes.get(METHOD, []):
            if by_flag and method in registry.METHODS:
                continue
            raise ConfigError(f"{source}: vary names no method {method}")
        values = {f"method.{name}": value for name, value in weights.items()}
        if METHOD in values or values.keys() & axes.keys():
            raise ConfigError(f"{source} states what is varied")
        layers[method] = recipe.Layer(source, values)
    return layers


def expand(
    layers: list[recipe.Layer],
    axes: Mapping[str, list[Any]],
    seeds: int,
    first: int = 0,
    own: Mapping[str, recipe.Layer] | None = None,
) -> list[Cell]:
    """Return every combination of the axes' values with so many seeds from `first` on.

    `own`: settings of single methods; flags come before them, a recipe after them. Raises
    ConfigError with all problems of all combinations, and for no seed at all.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least one is needed, and an interval needs two")
    # counted before the cells are made: their number may be beyond any memory
    runs = seeds * math.prod(map(len, axes.values()))
    if runs > 10_000:
        # Python refuses to write a number of thousands of digits
        number = f"{runs:,}" if runs < 10**100 else "more than 10^100"
        raise ConfigError(
            f"--seeds and what is varied make {number} runs; at most 10,000 are taken. Vary less, "
            "or use fewer seeds"
        )
    cells: list[Cell] = []
    problems: list[str] = []
    # Seed by seed, so that an ablation that is stopped has whole pairs of cells.
    for seed in range(first, first + seeds):
        for values in itertools.product(*axes.values()):
            if len(problems) >= MOST_REPORTED:
                break
            varied = dict(zip(axes, values, strict=True))
            top = recipe.Layer("--vary", {**varied, SEED: seed})
            # Where methods are compared, a weight stated for all of them reaches those that read
            # it; one that none of them reads stays, to be refused.
            reaching = [one.without(unread_of(one, axes, varied.get(METHOD))) for one in layers]
            of_method = [one for name, one in (own or {}).items() if name == varied.get(METHOD)]
            recipes = sum(one.is_recipe for one in layers)  # they come first
            try:
                config = recipe.resolve([*reaching[:recipes], *of_method, *reaching[recipes:], top])
                if METHOD in varied:  # as results name it: `kd+entropy`, entropy added to all
                    varied = {**varied, METHOD: method_label(config, varied)}
                cells.append(Cell(varied, seed, config))
            except ConfigError as error:
                problems += str(error).splitlines()
    if problems:
        # a wrong value comes back in every combination that has it: each is reported once
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return cells


def check_alike(
    layers: list[recipe.Layer],
    may_differ: list[str],
    axes: Mapping[str, list[Any]],
    cells: list[Cell],
) -> None:
    """Raise ConfigError where cells would differ in more than their method.

    That is where a recipe states a weight for its own method, and another one reads it too but
    would have its default. Entropy may differ, which is what some methods are, and what is varied
    or stated for each method (`may_differ`).
    """
    problems = []
    for layer in [layer for layer in layers if layer.is_recipe and METHOD in axes]:
        for key in [key for key in layer.weights() if key not in (ENTROPY, *may_differ)]:
            found = {c.config.method.name: c.config.flat().get(key) for c in cells}
            own = found.get(layer.method)
            others = {name: v for name, v in found.items() if v is not None and v != own}
            if own is not None and others:
                listed = ", ".join(f"{name} has {value}" for name, value in others.items())
                problems.append(
                    f"{layer.source}: {key} = {own} is for {layer.method}, and {listed}: the cells "
                    f"would differ in more than what is varied. State it for all: --set {key}={own}"
                )
    if problems:
        raise ConfigError("\n".join(problems))


def unread_of(layer: recipe.Layer, axes: Mapping[str, list[Any]], method: Any) -> list[str]:
    """Return the weights in a layer that `method` does not read, while another varied one does."""
    if METHOD not in axes or layer.is_recipe or method not in registry.METHODS:
        return []
    compared = set(axes[METHOD])
    valid = settings.keys()
    weights = [key for key in layer.weights() if key in valid]
    return [
        key
        for key in weights
        if method not in settings.readers(key) and compared & set(settings.readers(key))
    ]


def choose_baseline(cells: list[Cell], text: str) -> dict[str, Any]:
    """Return the varied settings that differences are taken to: those named, else the first cell's.

    Raises ConfigError where no cell has them.
    """
    if not text:
        return cells[0].varied
    # with a comma between, as the labels of cells are written, or a semicolon
    found = parse_vary(re.split(r"\s*[,;]\s*", text), "--baseline")
    wanted = {key: values[0] for key, values in found.items()}
    for cell in cells:
        # a method may be named as its cell is (`kd+entropy`) or as it was stated (`kd`)
        stated = cell.config.flat()
        if all(
            key in cell.varied and wanted[key] in (cell.varied[key], stated[key]) for key in wanted
        ):
            return {key: cell.varied[key] for key in wanted}
    labels = "; ".join(dict.fromkeys(cell.label for cell in cells))
    raise ConfigError(f"--baseline {text}: there is no such cell. Cells: {labels}")
