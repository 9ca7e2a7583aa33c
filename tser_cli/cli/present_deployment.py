"""Results on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from tser_cli.engine.commands.export import Exported
    from tser_cli.export.verify import Check


def show_export(exported: Exported) -> None:
    """The table of checks, and what was written."""
    from tser_cli.report import console

    out = console.output()
    if exported.checks:
        out.print(checks_table(exported.checks))
    if exported.checks is None:
        out.print("not verified: --no-verify")
    if not exported.holds:
        out.print(f"the check does not hold; {exported.path} was not written", soft_wrap=True)
        return
    out.print(f"file: {exported.path} ({exported.size / 2**20:.1f} MiB)", soft_wrap=True)
    out.print(f"checks: {exported.path}.verified.json", soft_wrap=True)
    out.print(f"model card: {exported.card}", soft_wrap=True)


def checks_table(checks: tuple[Check, ...]) -> Table:
    """A row a program: what was compared, and whether it agrees."""
    from rich.table import Table

    table = Table(title="The same spikes in other programs")
    for column in ("program", "precision", "images", "spikes compared", "differing", "ties"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for column in ("parted at a tie", "logits differ by", "holds"):
        table.add_column(column, justify="right")
    for check in checks:
        c = check.comparison
        table.add_row(
            f"{check.target.library} {check.versions[check.target.packages[0]]}",
            check.target.precision,
            *(f"{number:,}" for number in (c.images, c.values, c.differing, c.ties, c.parted)),
            f"{max(c.logits_difference):.1e}",
            "yes" if check.holds else "NO",
        )
    return table
