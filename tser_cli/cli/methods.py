"""`tser methods`."""

from __future__ import annotations


def methods() -> None:
    """List the training methods: what each does, where it comes from, its own weights."""
    from tser_cli import registry
    from tser_cli.report import console

    console.output().print(console.methods_table(registry.METHODS))
