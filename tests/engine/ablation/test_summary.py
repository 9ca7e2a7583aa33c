"""The tables of an ablation, from the records of its cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.results import RESULT
from tser_cli.base import files
from tser_cli.engine.ablation.folder import cell_folder
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.ablation.summary import write_tables
from tser_cli.engine.runs.folder import Run, create
from tser_cli.report.csv_files import PROVENANCE, read_csv
from tser_cli.report.predictions import PREDICTIONS, write_predictions

Ask = Callable[..., Request]


def finish(cell: Cell, folder: Path, **result: Any) -> Run:
    run = create(cell_folder(cell, folder), "student", cell.config)
    run.update_status(state="finished", result={**RESULT, **result})
    return run


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from now on."""
    names: list[str] = []
    before = files.read_regular
    monkeypatch.setattr(
        files, "read_regular", lambda path, limit: (names.append(path.name), before(path, limit))[1]
    )
    return names


def test_each_status_is_read_once_and_only_of_cells_that_changed(
    ask: Ask, tmp_path: Path, reads: list[str]
) -> None:
    request = ask(["method=ce,kd"], 3)
    for place, cell in enumerate(request.cells, start=1):
        finish(cell, tmp_path)
        reads.clear()
        write_tables(request, tmp_path)
        assert reads.count("status.json") == 1
        states = [row["state"] for row in read_csv(tmp_path / "ablation.csv")]
        assert states.count("finished") == place
    reads.clear()
    write_tables(request, tmp_path)
    assert "status.json" not in reads


@pytest.mark.parametrize(
    ("git", "commit"),
    [
        ({"commit": "c0ffee", "changed": False}, "c0ffee"),
        ({"commit": "c0ffee", "changed": True}, "c0ffee+changes"),
        ({}, "version 1.2"),
    ],
)
def test_a_row_says_where_its_numbers_come_from(
    ask: Ask, tmp_path: Path, git: dict[str, object], commit: str
) -> None:
    request = ask(["method=ce,kd"])
    run = finish(request.cells[0], tmp_path)
    run.update_environment(tser="1.2", git=git, packages={"torch": "2.15"}, threads=3)
    write_tables(request, tmp_path)
    made, missing = read_csv(tmp_path / "ablation.csv")
    assert (made["commit"], made["torch"], made["threads"]) == (commit, "2.15", "3")
    assert list(made)[-len(PROVENANCE) :] == list(PROVENANCE)
    assert (missing["state"], missing["accuracy"], missing["commit"]) == ("missing", "", "")
    assert missing["folder"] == "cells/method=kd_s0"


def test_images_count_where_there_are_predictions(ask: Ask, tmp_path: Path) -> None:
    request = ask(["method=ce,kd"])
    for cell, wrong in zip(request.cells, (4, 1), strict=True):
        answers = np.where(np.arange(10) < wrong, 1, 0)[:, None]
        run = finish(cell, tmp_path)
        write_predictions(run.folder / PREDICTIONS, np.zeros(10, int), answers, answers)
    base, other = write_tables(request, tmp_path)
    # the second alone is right on 3 images, the first alone on none: p = 2 * (1/2)^3
    assert (base.p_mcnemar, other.p_mcnemar) == (None, pytest.approx(0.25))
    assert read_csv(tmp_path / "summary.csv")[1]["p_mcnemar"] == str(other.p_mcnemar)
