"""Flags and recipes as settings, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tser_cli.cli import layers

RECIPE = '[method]\nname = "tser"\nentropy_weight = 0.1\n'


def test_weights_that_are_left_out_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE)
    expected = f"recipe {file}: method.entropy_weight = 0.1: tser's, left out for ce\n"
    for rank, said in (("", expected), ("0", expected), ("1", "")):
        monkeypatch.delenv("RANK", raising=False)
        if rank:
            monkeypatch.setenv("RANK", rank)
        config = layers.training_config("student", {"method.name": "ce"}, str(file), None)
        assert config.method.entropy_weight == 0.0
        assert capsys.readouterr() == ("", said)


def test_a_teacher_s_method_is_nobody_s_business(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE)
    layers.training_config("teacher", {"method.name": "ce"}, str(file), None)
    assert capsys.readouterr() == ("", "")
