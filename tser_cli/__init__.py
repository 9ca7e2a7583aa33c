"""tser: distil a trained ANN into a spiking network, and measure the result.

The commands are functions too (docs/library.md), and plug-ins add methods, models and data sets
(docs/your-own.md). All are loaded when they are first used: `import tser_cli` itself imports
neither torch nor anything else that is heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tser_cli.energy.any_network.network_counter import count_operations
    from tser_cli.engine.commands.library import (
        distill,
        distill_networks,
        evaluate,
        evaluate_network,
        load_run,
    )
    from tser_cli.settings.registry import add_dataset, add_method, add_model

__all__ = [
    "add_dataset",
    "add_method",
    "add_model",
    "count_operations",
    "distill",
    "distill_networks",
    "evaluate",
    "evaluate_network",
    "load_run",
]
# The homes of those that are not in the library of commands.
HOMES = {
    "count_operations": "energy.any_network.network_counter",
    **dict.fromkeys(("add_dataset", "add_method", "add_model"), "settings.registry"),
}


def __getattr__(name: str) -> Any:
    """Load one of the public functions."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = HOMES.get(name, "engine.commands.library")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    """List the public functions beside the module's own names."""
    return sorted([*globals(), *__all__])
