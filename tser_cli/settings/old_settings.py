"""Settings files of version 0.1, read as settings of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tser_cli.settings import registry
from tser_cli.settings.config import METHOD, keys

# Every config.toml of a run held the weights of all methods.
WEIGHTS = {
    *("method.temperature", "method.ce_weight", "method.kd_weight", "method.entropy_weight"),
    *("method.feature_weight", "method.alpha", "method.beta", "method.lam", "method.target"),
}


def of_today(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, as today's; settings of today come back as they are.

    `training.label_smoothing` has become the method's. In a file with the weights of all methods,
    those that its method did not read had no effect and go; what the method did before there was a
    setting for it is stated (`MethodSettings.earlier`). So the file means what it meant. A recipe
    that states some weights by hand is not touched: one that its method does not read is an error.
    """
    found = dict(values)
    if "training.label_smoothing" in found:
        found["method.label_smoothing"] = found.pop("training.label_smoothing")
    entry = registry.METHODS.get(str(found.get(METHOD)))
    if entry is None or not found.keys() >= WEIGHTS:
        return found
    read = keys(str(found[METHOD]))
    earlier = {f"method.{key}": value for key, value in entry.settings.earlier.items()}
    return {**earlier, **{k: v for k, v in found.items() if k in read or k not in WEIGHTS}}
