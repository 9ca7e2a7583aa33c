"""Settings whose paths hold from any folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tser_cli.engine.runs.find import with_whole_paths
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]


def test_paths_are_made_whole(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "t.pt").touch()
    config = make_config(
        {
            "data.dir": "~/images",
            "model.teacher": "t.pt",
            "model.teacher_weights": "w.pt",
            "model.teacher_recipe": "digits/resnet34_teacher",
        }
    )
    whole = with_whole_paths(config)
    assert whole.data.dir == "/home/somebody/images"
    assert whole.model.teacher == str(tmp_path / "t.pt")
    assert whole.model.teacher_weights == str(tmp_path / "w.pt")
    assert whole.model.teacher_recipe == "digits/resnet34_teacher"  # one of the package
    assert with_whole_paths(whole) is whole


def test_an_architecture_is_no_path(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet20").mkdir()
    config = make_config()
    assert with_whole_paths(config) is config


def test_what_is_no_path_is_left_to_whoever_opens_it(make_config: MakeConfig) -> None:
    config = make_config({"data.dir": "~no.such.user/x"})
    assert with_whole_paths(config).data.dir == "~no.such.user/x"
