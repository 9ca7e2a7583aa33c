"""The sums of an epoch: means over images, and how processes share them."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.training.state import EpochSums

CPU = torch.device("cpu")


def batches() -> list[tuple[int, float, int]]:
    """Images, mean loss and right answers of five batches of unequal size."""
    draw = random.Random(0)
    return [
        (images, draw.random(), draw.randrange(images + 1))
        for images in draw.sample(range(5, 50), 5)
    ]


def filled(parts: list[tuple[int, float, int]], sums: EpochSums) -> EpochSums:
    for images, loss, right in parts:
        sums.add(images, {"loss": torch.tensor(loss), "correct": torch.tensor(right)})
    return sums


def test_means_are_over_images_not_over_batches(runtime: Runtime) -> None:
    parts = batches()
    images = sum(part[0] for part in parts)
    means = filled(parts, EpochSums()).means(runtime)
    assert list(means) == ["loss", "correct"]
    loss = sum(n * float(torch.tensor(loss)) for n, loss, _ in parts) / images
    assert means["loss"] == pytest.approx(loss, rel=1e-14)
    assert means["correct"] == sum(part[2] for part in parts) / images


def test_sums_restored_in_the_middle_end_the_same(runtime: Runtime) -> None:
    parts = batches()
    whole = filled(parts, EpochSums())
    kept = filled(parts[:2], EpochSums()).state()
    resumed = filled(parts[2:], EpochSums.restore(kept, CPU))
    assert resumed.state() == whole.state()
    assert resumed.means(runtime) == whole.means(runtime)


def test_the_state_is_plain() -> None:
    kept = filled(batches(), EpochSums()).state()
    assert type(kept["images"]) is int
    assert {type(value) for value in kept["sums"].values()} == {float}


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
