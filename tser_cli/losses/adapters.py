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
    _check_some(student, teacher)
    if len(student) != len(teacher):
        raise ConfigError(
            f"method.name: the student has {len(student)} stages and the teacher {len(teacher)}; "
            "this method needs as many, as resnet18 and resnet34 have"
        )
    for number, (ours, theirs) in enumerate(zip(student, teacher, strict=True), start=1):
        _check_maps(f"stage {number}", ours, theirs)


def check_last_stage(student: list[Shape], teacher: list[Shape]) -> None:
    """Raise ConfigError where the last stages of the two networks can't be compared."""
    _check_some(student, teacher)
    _check_maps("the last stage", student[-1], teacher[-1])


def _check_some(student: list[Shape], teacher: list[Shape]) -> None:
    for who, stages in (("student", student), ("teacher", teacher)):
        if not stages:
            raise ConfigError(
                f"method.name: the {who} has no stages whose features could be compared; this "
                "method needs ResNets"
            )


def _check_maps(where: str, ours: Shape, theirs: Shape) -> None:
    if ours[1:] != theirs[1:]:
        raise ConfigError(
            f"method.name: {where} is {ours[1]} x {ours[2]} in the student and {theirs[1]} x "
            f"{theirs[2]} in the teacher; this method needs maps of one size: the same model.stem "
            "and as many stages"
        )
