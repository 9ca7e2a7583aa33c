"""What trainings are tested with: a stop at a step, a prepared task, equality to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import make_config, make_context, make_fit, make_task
from tser_cli.base.progress import Silent
from tser_cli.engine.runs.networks import Loaded
from tser_cli.engine.runs.opened import Context
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.training.run import compute_teacher_logits, keeps_logits, student_task
from tser_cli.engine.training.state import TrainingJob
from tser_cli.engine.training.task import Task
from tser_cli.models.base import Classifier, build_model

Job = Callable[..., TrainingJob]
Prepared = Callable[..., tuple[Task, Context]]
CLOCK = ("images_per_second", "seconds")
STILL = {"augment.crop_padding": 0, "augment.flip": False, "model.timesteps": 3}


class StopsAt(Silent):
    """Asks for a stop at a step, counted from 1 over the whole run."""

    def __init__(self, step: int) -> None:
        self.stop = StopRequest(lambda text: None)
        self.left = step

    def step(self, images: int, values: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.signal = 15


def weights(work: TrainingJob) -> dict[str, torch.Tensor]:
    return copy.deepcopy(work.task.model.state_dict())


def timeless(rows: list[dict[str, Any]], *more: str) -> list[dict[str, Any]]:
    """The rows of metrics.csv without what the clock wrote."""
    return [{k: v for k, v in row.items() if k not in (*CLOCK, *more)} for row in rows]


def assert_same(a: Any, b: Any, path: str = "") -> None:
    """Equal to the last bit, through dicts, lists and tuples."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{path}[{index}]")
    else:
        assert a == b, path


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """`job("student", {"training.epochs": 3}, progress, "folder")`: a tiny training to fit."""

    def make(
        kind: str,
        changes: dict[str, Any] | None = None,
        progress: Silent | None = None,
        folder: str = "",
        **parts: Any,
    ) -> TrainingJob:
        return make_fit(kind, make_config(changes), tmp_path / folder, progress, **parts)

    return make


def task_of(changes: dict[str, Any] | None = None, kind: str = "student") -> Task:
    """`task_of({"method.name": "kd"}, "teacher")`: a seeded network and its objective."""
    return make_task(kind, make_config(changes))


@pytest.fixture
def teacher(wake: Callable[[Classifier], Classifier]) -> Classifier:
    """An ANN with running statistics that folding must take into account."""
    torch.manual_seed(7)
    return wake(build_model("resnet20", channels=1, height=8, width=8, num_classes=3))


@pytest.fixture
def prepared(teacher: Classifier) -> Prepared:
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
