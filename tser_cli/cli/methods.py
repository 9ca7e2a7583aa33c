"""`tser methods`."""

from __future__ import annotations

from tser_cli.cli import options as opt


def methods(plugin: opt.Plugin = None) -> None:
    """List the training methods: what each does, where it comes from, the weights it reads."""
    from tser_cli import registry
    from tser_cli.report import console

    out = console.output()
    out.print(console.methods_table(registry.METHODS))
    out.print(console.deviations(registry.METHODS), soft_wrap=True)
