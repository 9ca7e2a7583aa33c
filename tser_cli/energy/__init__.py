"""Counting synaptic operations, and turning counts into joules."""

from typing import Any


def __getattr__(name: str) -> Any:
    # the documents have long shown `from tser_cli.energy import count_operations`
    if name == "count_operations":
        import tser_cli

        return tser_cli.count_operations
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
