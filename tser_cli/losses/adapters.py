"""Adapters of feature distillation: they train with the student and are not saved with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tser_cli.base.errors import ConfigError
from tser_cli.losses.base import Shape

MASKED = 0.15


class StageAdapters(nn.ModuleList):
    """One module a stage, applied to that stage's features."""

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(adapt(x) for adapt, x in zip(self, features, strict=True))


def stage_convolutions(student: list[Shape], teacher: list[Shape]) -> StageAdapters:
    """Return a 3 x 3 convolution and batch norm a stage, to the teacher's number of channels."""
    return StageAdapters(
        nn.Sequential(
            nn.Conv2d(ours[0], theirs[0], 3, padding=1, bias=False), nn.BatchNorm2d(theirs[0])
        )
        for ours, theirs in zip(student, teacher, strict=True)
    )


class Blur(nn.Module):
    """Align, mask channels while training, rebuild: the last stage's features [N, C, H, W]."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        same = student == teacher
        self.align = nn.Identity() if same else nn.Conv2d(student, teacher, 1)
        self.rebuild = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 3, padding=1),
        )

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = self.align(features[-1])
        # a channel is lost in the whole map: single values would be filled in from their neighbours
        if self.training:
            x = x * (torch.rand(*x.shape[:2], 1, 1, device=x.device) >= MASKED)
        return (*features[:-1], self.rebuild(x))


def check_stages(student: list[Shape], teacher: list[Shape]) -> None:
    """Raise ConfigError where the stages of the two networks can't be compared one by one."""
    if len(student) != len(teacher):
        raise ConfigError(
            f"method.name: the student has {len(student)} stages and the teacher {len(teacher)}; "
            "this method needs as many, as resnet18 and resnet34 have"
        )
    for number, (ours, theirs) in enumerate(zip(student, teacher, strict=True), start=1):
        check_maps(f"stage {number}", ours, theirs)


def check_maps(where: str, ours: Shape, theirs: Shape) -> None:
    """Raise ConfigError where two stages' maps differ in height or width."""
    if ours[1:] != theirs[1:]:
        raise ConfigError(
            f"method.name: {where} is {ours[1]} x {ours[2]} in the student and {theirs[1]} x "
            f"{theirs[2]} in the teacher; this method needs maps of one size: the same model.stem "
            "and as many stages"
        )
