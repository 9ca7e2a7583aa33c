"""A student's task as a run prepares it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tser_cli.base.progress import Silent
from tser_cli.engine.runs.networks import Loaded
from tser_cli.engine.runs.opened import Context
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.engine.training.run import compute_teacher_logits, keeps_logits, student_task
from tser_cli.engine.training.task import Task
from tser_cli.models.base import Classifier, build_model
from tser_cli.settings.config import Config

Prepared = Callable[..., tuple[Task, Context]]
STILL = {"augment.crop_padding": 0, "augment.flip": False, "model.timesteps": 3}


@pytest.fixture
def teacher(wake: Callable[[Classifier], Classifier]) -> Classifier:
    """An ANN with running statistics that folding must take into account."""
    torch.manual_seed(7)
    return wake(build_model("resnet20", channels=1, height=8, width=8, num_classes=3))


@pytest.fixture
def prepared(
    make_config: Callable[..., Config],
    make_context: Callable[..., Context],
    teacher: Classifier,
) -> Prepared:
    """`prepared(changes)`: a student's task as a run prepares it, on images that never change."""

    def make(changes: dict[str, Any] | None = None) -> tuple[Task, Context]:
        config = make_config({**STILL, "optimizer.lr": 0.01, **(changes or {})})
        plain = make_context(config)
        runtime = make_runtime(config.training, config.performance.channels_last)
        context = Context(config, plain.dataset, runtime, Silent())
        task = student_task(context, Loaded(teacher, "resnet20", "here", "0"))
        task.network = runtime.place(task.network)
        if keeps_logits(task, config, True, 1):
            task.teacher_logits_MK = compute_teacher_logits(task, context, lambda: None)
        return task, context

    return make
