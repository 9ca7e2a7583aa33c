"""The sums of an epoch, and when to save."""

from __future__ import annotations

import random

import pytest
import torch

from tser_cli.engine.runtime.processes import Runtime
from tser_cli.engine.training import position
from tser_cli.engine.training.position import CheckpointClock, Meter, Position

CPU = torch.device("cpu")


def batches() -> list[tuple[int, float, int]]:
    """Images, mean loss and right answers of five batches of unequal size."""
    draw = random.Random(0)
    return [
        (images, draw.random(), draw.randrange(images + 1))
        for images in draw.sample(range(5, 50), 5)
    ]


def filled(parts: list[tuple[int, float, int]], meter: Meter) -> Meter:
    for images, loss, right in parts:
        meter.add(images, {"loss": torch.tensor(loss), "correct": torch.tensor(right)})
    return meter


def test_means_are_over_images_not_over_batches(runtime: Runtime) -> None:
    parts = batches()
    images = sum(part[0] for part in parts)
    means = filled(parts, Meter()).means(runtime)
    assert list(means) == ["loss", "correct"]
    loss = sum(n * float(torch.tensor(loss)) for n, loss, _ in parts) / images
    assert means["loss"] == pytest.approx(loss, rel=1e-14)
    assert means["correct"] == sum(part[2] for part in parts) / images


def test_a_meter_restored_in_the_middle_ends_the_same(runtime: Runtime) -> None:
    parts = batches()
    whole = filled(parts, Meter())
    kept = filled(parts[:2], Meter()).state()
    resumed = filled(parts[2:], Meter.restore(kept, CPU))
    assert resumed.state() == whole.state()
    assert resumed.means(runtime) == whole.means(runtime)


def test_a_meter_s_state_is_plain() -> None:
    kept = filled(batches(), Meter()).state()
    assert type(kept["images"]) is int
    assert {type(value) for value in kept["sums"].values()} == {float}


def test_a_meter_keeps_no_graph() -> None:
    loss = torch.tensor(1.0, requires_grad=True)
    meter = Meter()
    meter.add(3, {"loss": loss * 2})
    assert not meter.sums["loss"].requires_grad


def test_positions_do_not_share_their_sums() -> None:
    first, second = Position(), Position()
    first.meter.add(1, {"loss": torch.tensor(1.0)})
    first.rows.append({"epoch": 1})
    assert second.meter.images == 0
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
    monkeypatch.setattr(position.time, "monotonic", lambda: times[-1])
    clock = CheckpointClock("2min", steps_per_epoch=5)
    due = []
    for now in (1000.0, 1119.9, 1120.0, 1121.0, 1239.9, 1500.0, 1619.0):
        times.append(now)
        due += [now] * clock.now(5)
    assert due == [1120.0, 1500.0]
