"""`tser` called inside the process of a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Invoke = Callable[..., tuple[int, str, str]]


def call(*arguments: object) -> int:
    """Call `tser` with these arguments; return its exit code."""
    from tser_cli.cli import app

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["tser", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
    return int(stop.value.code or 0)
