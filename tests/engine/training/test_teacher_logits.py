"""A teacher's logits, computed once where its images never change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tser_cli.base.errors import Interrupted
from tser_cli.data.loaders import build_eval_loader
from tser_cli.engine.runs.opened import Context
from tser_cli.engine.training.run import compute_teacher_logits, keeps_logits
from tser_cli.engine.training.task import Task
from tser_cli.models.base import Classifier

Prepared = Callable[..., tuple[Task, Context]]


def test_kept_logits_are_the_teacher_s(prepared: Prepared, teacher: Classifier) -> None:
    task, context = prepared()
    assert task.teacher_logits_MK is not None and task.teacher_logits_MK.shape == (24, 3)
    batch = next(iter(build_eval_loader(context.dataset, "train", context.config)))
    torch.testing.assert_close(
        task.teacher_logits_MK[batch.indices_N], teacher(batch.images_NCHW), rtol=1e-4, atol=1e-5
    )


def test_logits_are_kept_only_where_they_stay_the_same_and_it_pays(
    prepared: Prepared,
) -> None:
    task, context = prepared()
    config = context.config
    assert keeps_logits(task, config, True, 1)
    assert not keeps_logits(task, config, False, 1)
    assert not keeps_logits(task, config, True, config.training.epochs)
    for changes in ({"method.name": "ce"}, {"method.name": "feature"}):
        other, other_context = prepared(changes)
        assert not keeps_logits(other, other_context.config, True, 1)


def test_a_request_to_stop_is_heard_while_the_teacher_teaches(
    prepared: Prepared,
) -> None:
    task, context = prepared()

    def stop() -> None:
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        compute_teacher_logits(task, context, stop)
