"""Help texts that end with examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from tser_cli.cli.terminal import Terminal

Kind = TypeVar("Kind", bound=type[TyperCommand] | type[TyperGroup])


def with_examples(kind: Kind, lines: Sequence[str]) -> Kind:
    """Return a class of commands whose help shows these command lines, whole, to be copied."""

    class WithExamples(kind):  # type: ignore[valid-type, misc]
        examples = tuple(lines)

        def format_help(self, ctx: typer.Context, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            out = Terminal()
            out.print(" Examples", style="bold")
            for line in lines:
                out.print(f"   {line}", soft_wrap=True)
            out.print()

    return WithExamples  # type: ignore[return-value]
