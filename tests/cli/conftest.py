"""Commands are called in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import Invoke


@pytest.fixture
def tser(tser: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Call the command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    return tser
