"""The result of a run in its status.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tser_cli.base.errors import RunError
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.record import RESULT, RunResult, read_result, recorded

Damage = Callable[[dict[str, Any]], Any]


@pytest.fixture
def result(tmp_path: Path) -> RunResult:
    """The result of a student of two steps."""
    steps = tuple(
        {
            "timesteps": 2,
            "t": t,
            "accuracy_at_t": 0.1 * t,
            "correct_at_t": t,
            "teacher_accuracy": None,
        }
        for t in (1, 2)
    )
    return RunResult(
        folder=tmp_path,
        kind="student",
        model="resnet20",
        dataset="digits",
        method="tser",
        timesteps=2,
        images=11,
        accuracy=1 / 3,
        teacher="resnet34",
        teacher_accuracy=0.9,
        best_validation_accuracy=None,
        energy_pj=48375.99999999999,
        ann_energy_pj=1e6,
        seconds=12.5,
        per_timestep=steps,
    )


@pytest.fixture
def run(tmp_path: Path, result: RunResult) -> Run:
    """A run that recorded it."""
    made = Run(tmp_path)
    made.update_status(state="finished", epoch=2, **{RESULT: result.to_json()})
    return made


def test_a_result_is_read_as_it_was_recorded(run: Run, result: RunResult) -> None:
    assert read_result(run) == result
    assert read_result(run).name == run.folder.name


def test_a_run_that_was_moved_has_its_result_where_it_lies_now(
    run: Run, result: RunResult, tmp_path: Path
) -> None:
    elsewhere = tmp_path.with_name(f"{tmp_path.name}_moved")
    tmp_path.rename(elsewhere)
    assert read_result(Run(elsewhere)) == replace(result, folder=elsewhere)


def test_later_changes_of_the_status_keep_the_result(run: Run, result: RunResult) -> None:
    run.update_status(state="finished", finished="2025-01-01T00:00:00+00:00")
    assert read_result(run) == result


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: None,
        lambda entry: [entry],
        lambda entry: {},
        lambda entry: {name: value for name, value in entry.items() if name != "accuracy"},
        lambda entry: {**entry, "accuracy": "high"},
        lambda entry: {**entry, "accuracy": None},
        lambda entry: {**entry, "per_timestep": 5},
        lambda entry: {**entry, "per_timestep": None},
        lambda entry: {**entry, "per_timestep": "t"},
        lambda entry: {**entry, "per_timestep": [1, 2]},
    ],
    ids=[
        "none",
        "a list",
        "empty",
        "less",
        "a word",
        "no number",
        "5",
        "no steps",
        "a text",
        "no rows",
    ],
)
def test_a_damaged_entry_is_an_error(run: Run, damage: Damage) -> None:
    run.update_status(**{RESULT: damage(run.status()[RESULT])})
    with pytest.raises(RunError, match="has no recorded result"):
        read_result(run)


@pytest.mark.parametrize("text", ["", "{", '{"state": "finished"}', "[]", '{"accuracy": NaN}'])
def test_a_damaged_status_is_an_error(run: Run, text: str) -> None:
    (run.folder / "status.json").write_text(text)
    with pytest.raises(RunError, match=r"has no recorded result|is damaged"):
        read_result(run)


def test_what_is_recorded_is_found_by_the_fields_of_a_result(run: Run, result: RunResult) -> None:
    found = recorded(run)
    assert {name: found[name] for name in result.to_json()} == result.to_json()
    assert found["state"] == "finished"


def test_a_status_from_before_results_were_recorded(tmp_path: Path) -> None:
    old = {"state": "finished", "accuracy": 0.5, "teacher_accuracy": 0.75, "images": 360}
    (tmp_path / "status.json").write_text(json.dumps(old))
    run = Run(tmp_path)
    assert recorded(run) == old
    with pytest.raises(RunError, match="has no recorded result"):
        read_result(run)


def test_of_a_damaged_entry_the_old_fields_are_left(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"accuracy": 0.5, RESULT: "?"}))
    assert recorded(Run(tmp_path))["accuracy"] == 0.5
    assert recorded(Run(tmp_path / "nowhere")) == {}
