"""How far a training has come: sums over an epoch, and when to save."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.training.state import CheckpointClock, EpochSums, Position


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
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    clock = CheckpointClock("2min", steps_per_epoch=5)
    due = []
    for now in (1000.0, 1119.9, 1120.0, 1121.0, 1239.9, 1500.0, 1619.0):
        times.append(now)
        due += [now] * clock.now(5)
    assert due == [1120.0, 1500.0]


# images, mean loss and right answers of batches of unequal size
BATCHES = [(29, 0.25, 7), (5, 0.84, 0), (31, 0.42, 31), (7, 0.76, 3), (12, 0.5, 1)]


def filled(parts: list[tuple[int, float, int]], sums: EpochSums) -> EpochSums:
    for images, loss, right in parts:
        sums.add(images, {"loss": torch.tensor(loss), "correct": torch.tensor(right)})
    return sums


def test_means_are_over_images_not_over_batches(runtime: Runtime) -> None:
    means = filled(BATCHES, EpochSums()).means(runtime)
    assert list(means) == ["loss", "correct"]
    loss = sum(n * float(torch.tensor(loss)) for n, loss, _ in BATCHES) / 84
    assert means["loss"] == pytest.approx(loss, rel=1e-14)
    assert means["correct"] == 42 / 84


def test_sums_restored_in_the_middle_end_the_same(runtime: Runtime) -> None:
    whole = filled(BATCHES, EpochSums())
    kept = filled(BATCHES[:2], EpochSums()).state()
    assert {type(value) for value in (kept["images"], *kept["sums"].values())} == {int, float}
    resumed = filled(BATCHES[2:], EpochSums.restore(kept, torch.device("cpu")))
    assert resumed.state() == whole.state()
    assert resumed.means(runtime) == whole.means(runtime)


def test_sums_keep_no_graph() -> None:
    loss = torch.tensor(1.0, requires_grad=True)
    sums = EpochSums()
    sums.add(3, {"loss": loss * 2})
    assert not sums.sums["loss"].requires_grad


def seat(rank: int, world: int) -> Runtime:
    """One of `world` processes, as far as sharing out sums needs it."""
    place = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=world)
    return Runtime(place)


def state(images: int, loss: float) -> dict[str, Any]:
    return {"images": images, "sums": {"loss": loss, "correct": float(images)}}


def test_as_many_processes_take_up_their_own_sums() -> None:
    states = [state(4, 1.5), state(4, 2.5)]
    taken = [EpochSums.share_out(states, seat(rank, 2)).state() for rank in range(2)]
    assert taken == states


@pytest.mark.parametrize("world", [1, 2, 4])
def test_another_number_of_processes_keeps_the_total(world: int) -> None:
    states = [state(4, 1.5), state(4, 2.5), state(3, 0.25)]
    taken = [EpochSums.share_out(states, seat(rank, world)).state() for rank in range(world)]
    assert taken[0] == {"images": 11, "sums": {"loss": 4.25, "correct": 11.0}}
    nothing = {"images": 0, "sums": {"loss": 0.0, "correct": 0.0}}
    assert taken[1:] == [nothing] * (world - 1)
