"""The largest batch that fits into memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tser_cli.base.errors import ConfigError
from tser_cli.engine.runs.opened import Context
from tser_cli.engine.training.settle import (
    bytes_an_image,
    kept_bytes,
    largest_batch,
)
from tser_cli.engine.training.task import Task

Prepared = Callable[..., tuple[Task, Context]]


def test_kept_bytes_grow_with_the_batch_and_change_nothing(
    prepared: Prepared,
) -> None:
    task, context = prepared()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    two, four, eight = (kept_bytes(task, context, images) for images in (2, 4, 8))
    assert (eight - four) == pytest.approx(2 * (four - two), rel=0.01)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_largest_batch_follows_the_free_memory(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, context = prepared()
    assert largest_batch(task, context) == 16  # of 24 training images
    one = (kept_bytes(task, context, 8) - kept_bytes(task, context, 4)) / 4
    weights = sum(p.numel() * p.element_size() for p in task.network.parameters())
    enough = 2 * weights + one * 1.5 / 0.8 * 4.5
    monkeypatch.setattr("tser_cli.engine.training.settle.free_bytes", lambda device: enough)
    assert largest_batch(task, context) == 4
    monkeypatch.setattr("tser_cli.engine.training.settle.free_bytes", lambda device: 2 * weights)
    with pytest.raises(ConfigError, match="not even one image fits"):
        largest_batch(task, context)


def test_saving_memory_lets_more_images_in_but_not_too_many(
    prepared: Prepared,
) -> None:
    plain, saving = (
        bytes_an_image(*prepared({"performance.save_memory": saves})) for saves in (False, True)
    )
    assert plain / 2 < saving < plain
    task, context = prepared({"performance.save_memory": True})
    bytes_an_image(task, context)
    assert task.model.save_memory


def test_every_part_of_a_batch_gets_as_many_images(
    prepared: Prepared,
) -> None:
    task, context = prepared({"training.accumulate": 3, "training.batch_size": 3})
    assert largest_batch(task, context) == 24  # 3 parts of 8; of 24 training images
