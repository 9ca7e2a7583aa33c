"""Commands are called in an empty folder; what they show is read line by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import Invoke


@pytest.fixture
def tser(tser: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Call the command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    return tser


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The lines that were shown on standard output; none on standard error."""

    def lines() -> list[str]:
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out.splitlines()

    return lines
