"""The line before a training."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from tser_cli.engine.training.run import announcement
from tser_cli.settings.config import Config

LOADER = SimpleNamespace(images=1437, steps_per_epoch=23)


def test_a_student_and_a_teacher(make_config: Callable[..., Config]) -> None:
    config = make_config({"training.epochs": 12, "method.entropy_weight": 0.0})
    assert announcement(config, True, LOADER).startswith(
        "training resnet20, spiking, with 2 time steps, by tser: 12 epochs of 23 steps on 1,437 "
        "images of digits, then a test"
    )
    one = make_config({"model.timesteps": 1, "method.name": "kd"})
    assert "with 1 time step, by kd: 2 epochs" in announcement(one, True, LOADER)
    assert announcement(config, False, LOADER).startswith("training resnet20, an ANN to teach from")
