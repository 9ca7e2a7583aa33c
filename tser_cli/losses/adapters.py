"""Adapters of feature distillation: they train with the student and are not saved with it."""

from __future__ import annotations

from torch import Tensor, nn

from tser_cli.errors import ConfigError
from tser_cli.losses.base import Shape


class StageAdapters(nn.ModuleList):
    """One module a stage, applied to that stage's features."""

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(adapt(x) for adapt, x in zip(self, features, strict=True))


def check_stages(student: list[Shape], teacher: list[Shape]) -> None:
    """Raise ConfigError where the stages of the two networks can't be compared one by one."""
    if not student or not teacher:
        raise ConfigError("method.name: feature methods need networks with stages, such as ResNets")
    if len(student) != len(teacher):
        raise ConfigError(
            f"method.name: the student has {len(student)} stages and the teacher {len(teacher)}; "
            "feature methods need as many, as resnet18 and resnet34 have"
        )
    for number, (ours, theirs) in enumerate(zip(student, teacher, strict=True), start=1):
        if ours[1:] != theirs[1:]:
            raise ConfigError(
                f"method.name: stage {number} is {ours[1:]} in the student and {theirs[1:]} in the "
                "teacher; feature methods need maps of one size (the same model.stem)"
            )
