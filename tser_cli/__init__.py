"""tser: distil a trained ANN into a spiking network, and measure the result.

The commands are functions too, see docs/library.md. They are loaded when they are first used:
`import tser_cli` itself imports neither torch nor anything else that is heavy.
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

__all__ = [
    "count_operations",
    "distill",
    "distill_networks",
    "evaluate",
    "evaluate_network",
    "load_run",
]
COUNTER, LIBRARY = "energy.any_network.network_counter", "engine.commands.library"


def __getattr__(name: str) -> Any:
    """Load one of the public functions."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = COUNTER if name == "count_operations" else LIBRARY
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    """List the public functions beside the module's own names."""
    return sorted([*globals(), *__all__])
