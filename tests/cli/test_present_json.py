"""Results as JSON: one document, whatever is in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tser_cli.cli import present_json
from tser_cli.settings.config import Config


@dataclass(frozen=True)
class Result:
    """A result with everything that results have."""

    folder: Path
    rows: tuple[Any, ...]
    config: Config


def test_a_result_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ({"t": np.int64(1), "loss": np.float64("nan")}, [float("inf"), None, True, "\x1b[2J"])
    present_json.show(Result(Path("a/b"), rows, Config()))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["folder"] == "a/b"
    assert found["rows"] == [{"t": 1, "loss": None}, [None, None, True, "\x1b[2J"]]
    assert found["config"]["data"]["name"] == "digits"


def test_long_texts_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    present_json.show(["x" * 100_000])
    assert json.loads(capsys.readouterr().out) == ["x" * 100_000]


def test_rank_0_alone_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    present_json.show([])
    assert capsys.readouterr().out == ""
