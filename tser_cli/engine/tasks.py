"""What is trained: a classifier (the teacher), or a student that learns from one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tser_cli import registry
from tser_cli.config import Config, MethodConfig
from tser_cli.errors import CheckpointError
from tser_cli.losses.base import Method, Outputs, Terms, load_method
from tser_cli.models import Classifier


@dataclass(frozen=True)
class StepResult:
    """The named terms of one batch and the number of images that were right."""

    terms: Terms
    correct: Tensor
    logits_TNK: Tensor


@dataclass
class Task:
    """A network in training and its objective. `network` may be `model` wrapped for DDP."""

    model: Classifier
    network: nn.Module
    method: Method
    settings: MethodConfig
    timesteps: int
    teacher: Classifier | None = None
    label_smoothing: float = 0.0

    def trainable(self) -> list[nn.Module]:
        """The modules whose parameters the optimizer moves."""
        return [self.model]

    def step(self, images_NCHW: Tensor, labels_N: Tensor) -> StepResult:
        """Forward pass and loss of a batch. Time is never averaged before the loss."""
        logits = self.network(images_NCHW, self.timesteps).float()
        logits_TNK = logits if self.model.spiking else logits.unsqueeze(0)
        teacher_NK = None if self.teacher is None else _teach(self.teacher, images_NCHW)
        outputs = Outputs(logits_TNK, labels_N, teacher_NK, self.label_smoothing)
        terms = self.method(outputs, self.settings)
        correct = (logits_TNK.detach().mean(0).argmax(-1) == labels_N).sum()
        return StepResult(terms, correct, logits_TNK)


@torch.no_grad()
def _teach(teacher: Classifier, images_NCHW: Tensor) -> Tensor:
    return teacher(images_NCHW).float()  # type: ignore[no-any-return]


def classification(model: Classifier, config: Config) -> Task:
    """Train an ANN with cross entropy on its logits."""
    settings = MethodConfig(name="ce")
    return Task(model, model, load_method("ce"), settings, 1, None, config.training.label_smoothing)


def distillation(student: Classifier, teacher: Classifier | None, config: Config) -> Task:
    """Train an SNN by the recipe's method; the teacher is frozen and in eval mode."""
    needs_teacher = registry.METHODS[config.method.name].needs_teacher
    assert teacher is not None or not needs_teacher, "the engine provides the teacher"
    return Task(
        student,
        student,
        load_method(config.method.name),
        config.method,
        config.model.timesteps,
        freeze(teacher) if teacher is not None and needs_teacher else None,
        config.training.label_smoothing,
    )


def freeze(model: Classifier) -> Classifier:
    """Eval mode and no gradients, for good."""
    return model.eval().requires_grad_(False)


@torch.no_grad()
def check_teacher(teacher: Classifier, image_shape: tuple[int, int, int], classes: int) -> None:
    """Raise CheckpointError where the teacher can't see these images or names other classes."""
    weight = next(p for p in teacher.parameters() if p.ndim == 4)
    channels = image_shape[0]
    if weight.shape[1] != channels:
        raise CheckpointError(
            f"the teacher takes {weight.shape[1]} input channels, the data set has {channels}. "
            "Train a teacher on this data set (tser train-teacher) or choose another"
        )
    was_training = teacher.training
    logits = teacher.eval()(torch.zeros(1, *image_shape, device=weight.device))
    teacher.train(was_training)
    if logits.shape[-1] != classes:
        raise CheckpointError(
            f"the teacher tells {logits.shape[-1]} classes apart, the data set has {classes}. "
            "Train a teacher on this data set (tser train-teacher) or choose another"
        )
