"""Compute a teacher's logits once for the whole training, where its images never change."""

from __future__ import annotations

import torch
from torch import Tensor

from tser_cli.config import Config
from tser_cli.data.loaders import build_eval_loader
from tser_cli.engine.runtime.context import CheckStop, Context
from tser_cli.engine.training.task import Task, teach

BATCH = 256


def keeps_logits(task: Task, config: Config, deterministic: bool, world: int) -> bool:
    """Return whether to compute the teacher's logits once: where images never change, and it pays.

    Every process computes all of them, so that it would not pay with more processes than epochs.
    """
    return (
        config.performance.keep_teacher_logits
        and task.teacher is not None
        and task.teacher_tap is None
        and deterministic
        and config.training.epochs > world
    )


@torch.no_grad()
def compute_teacher_logits(task: Task, context: Context, check_stop: CheckStop) -> Tensor:
    """Return the teacher's logits of all training images, [M, K] by index; zeros for others.

    The order and the batches never change, so that a resumed run has the same bits. `check_stop` is
    called after each batch, and may raise.
    """
    assert task.teacher is not None
    runtime, dataset = context.runtime, context.dataset
    config = context.config.updated({"training.eval_batch_size": BATCH})
    teacher_logits_MK = torch.zeros(
        len(dataset.train), dataset.spec.num_classes, device=runtime.device
    )
    for batch in build_eval_loader(dataset, "train", config):
        with runtime.autocast():
            logits_NK = teach(task.teacher, runtime.images(batch.images_NCHW))
        teacher_logits_MK[batch.indices_N.to(runtime.device)] = logits_NK
        check_stop()
    return teacher_logits_MK
