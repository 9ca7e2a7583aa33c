"""How far a training has come, and when to save."""

from __future__ import annotations

import pytest
import torch

from tser_cli.engine.training import state
from tser_cli.engine.training.state import CheckpointClock, Position


def test_positions_do_not_share_their_sums() -> None:
    first, second = Position(), Position()
    first.sums.add(1, {"loss": torch.tensor(1.0)})
    first.rows.append({"epoch": 1})
    assert second.sums.images == 0
    assert second.rows == []


@pytest.mark.parametrize(
    ("every", "due"),
    [
        ("1step", list(range(1, 13))),
        ("4steps", [4, 8, 12]),
        ("1epoch", [5, 10]),
        ("2epochs", [10]),
        ("200steps", []),
    ],
)
def test_a_clock_of_steps_and_epochs(every: str, due: list[int]) -> None:
    clock = CheckpointClock(every, steps_per_epoch=5)
    assert [step for step in range(1, 13) if clock.now(step)] == due


def test_a_clock_of_minutes_starts_again_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [1000.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: times[-1])
    clock = CheckpointClock("2min", steps_per_epoch=5)
    due = []
    for now in (1000.0, 1119.9, 1120.0, 1121.0, 1239.9, 1500.0, 1619.0):
        times.append(now)
        due += [now] * clock.now(5)
    assert due == [1120.0, 1500.0]
