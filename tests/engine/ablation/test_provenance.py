"""Where an ablation's numbers come from, in columns of ablation.csv."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.results import RESULT
from tser_cli.engine.ablation.folder import cell_folder, code_of, provenance, settings_in_words
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.runs.folder import create
from tser_cli.report.csv_files import PROVENANCE
from tser_cli.settings.config import Config


@pytest.mark.parametrize(
    ("git", "commit"),
    [
        ({"commit": "c0ffee", "changed": False}, "c0ffee"),
        ({"commit": "c0ffee", "changed": True}, "c0ffee+changes"),
        ({}, "version 1.2"),
    ],
)
def test_code_is_a_commit_or_a_version(git: dict[str, object], commit: str) -> None:
    environment = {"tser": "1.2", "git": git, "packages": {"torch": "2.15"}, "threads": 2}
    assert code_of(environment) == {"commit": commit, "torch": "2.15", "threads": 2}


def test_an_environment_of_an_older_version() -> None:
    assert code_of({"tser": "0.1"}) == {"commit": "version 0.1", "torch": None, "threads": None}


def test_settings_are_those_that_differ_and_are_not_varied() -> None:
    config = Config().updated({"optimizer.lr": 0.3, "model.timesteps": 4, "training.seed": 7})
    words = settings_in_words(Cell({"model.timesteps": 4}, 7, config))
    assert words["settings"] == "optimizer.lr=0.3"
    assert words["temperature"] == 2.0
    assert "entropy_weight=0.05" in words["weights"].split("; ")
    assert "temperature" not in words["weights"]
    assert settings_in_words(Cell({}, 0, Config()))["settings"] == ""


def test_a_cell_tells_its_code_once_it_finished(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    cell = Cell({"method.name": "kd"}, 0, make_config())
    assert not provenance(cell, tmp_path).keys() & {"commit", "torch", "threads"}
    run = create(cell_folder(cell, tmp_path), "student", cell.config)
    run.update_environment(threads=3)
    run.update_status(state="finished", result=RESULT)
    found = provenance(cell, tmp_path)
    assert found.keys() == PROVENANCE.keys()
    assert found["threads"] == 3
