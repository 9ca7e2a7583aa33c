"""The [ablation] section of a recipe: what it may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tser_cli.errors import ConfigError, nearest
from tser_cli.report.csv_files import RENAMED

SECTION_KEYS = ("vary", "seeds", "baseline", "measure", "accuracy_margin")
MEASURES = ("accuracy", "best_validation_accuracy")
DEFAULT_MARGIN = 0.5


def measure_of(section: Mapping[str, Any]) -> str:
    """Return the column of ablation.csv that is compared; recipes may use its older name."""
    name = str(section.get("measure", MEASURES[0]))
    return RENAMED.get(name, name)


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
    if not isinstance(count, int) or isinstance(count, bool):
        problems.append(f"seeds = {count!r} must be a whole number")
    if not isinstance(section.get("baseline", ""), str):
        problems.append('baseline must be a text, as "method=kd"')
    margin = section.get("accuracy_margin", DEFAULT_MARGIN)
    if not isinstance(margin, int | float) or isinstance(margin, bool) or not 0 <= margin < 100:
        problems.append(f"accuracy_margin = {margin!r} must be points of percent, 0 or more")
    measure = measure_of(section)
    if measure not in MEASURES:
        problems.append(f'measure = "{measure}" must be one of {", ".join(MEASURES)}')
    if problems:
        raise ConfigError("\n".join(f"[ablation]: {problem}" for problem in problems))


def margin_of(section: Mapping[str, Any], flag: float | None) -> float:
    """Return how far below the baseline's accuracy energies are compared, as a fraction.

    The flag and the section's `accuracy_margin` are in points of percent. Raises ConfigError.
    """
    if flag is not None and not 0.0 <= flag < 100.0:
        raise ConfigError(f"--accuracy-margin {flag}: it is in points of percent, 0 or more")
    return float(section.get("accuracy_margin", DEFAULT_MARGIN) if flag is None else flag) / 100
