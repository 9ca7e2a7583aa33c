"""`tser methods`."""

from __future__ import annotations

from tser_cli import registry
from tser_cli.cli import options as opt
from tser_cli.cli import present


def methods(plugin: opt.Plugin = None) -> None:
    """List the training methods: what each does, where it comes from, the weights it reads."""
    present.show_methods(registry.METHODS)
