"""Teachers from elsewhere: built by a function of the user's, used to images of another scale."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.config import Config, ModelConfig
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runs.own_modules import build_network, digest, load_weights
from tser_cli.errors import ConfigError
from tser_cli.models.own_network import OwnNetwork

FUNCTION = re.compile(r"[\w.]+:\w+")


def is_function(teacher: str) -> bool:
    """Return whether a teacher is MODULE:FUNCTION."""
    return FUNCTION.fullmatch(teacher) is not None


def build_teacher(model: ModelConfig) -> Loaded:
    """Build the teacher MODULE:FUNCTION, with its weights. Raises ConfigError, CheckpointError."""
    network, source = build_network(model.teacher, flag="--teacher"), model.teacher
    if model.teacher_weights:
        path = Path(model.teacher_weights).expanduser()
        load_weights(network, path)
        source += f" with {path}"
    return Loaded(OwnNetwork(network, spiking=False), model.teacher, source, digest(network))


def check_from_elsewhere(model: ModelConfig, path: Path | None) -> None:
    """Raise ConfigError for settings of teachers from elsewhere where the teacher is none."""
    if model.teacher_weights and not is_function(model.teacher):
        raise ConfigError(
            f"model.teacher_weights goes with --teacher MODULE:FUNCTION, not with {model.teacher}; "
            "name the file itself: --teacher FILE"
        )
    if model.teacher_mean and path is None and not is_function(model.teacher):
        raise ConfigError(
            f"model.teacher_mean is for a teacher from elsewhere: {model.teacher} is trained here, "
            "on images as the student sees them. Leave it out, or name a file"
        )


def renormalised(loaded: Loaded, config: Config, spec: DataSpec) -> Loaded:
    """Return `loaded`, which from now on sees images scaled as the settings say of the teacher.

    Images come as (p - mean) / std of the data set. The teacher gets (p - teacher_mean) /
    teacher_std. Raises ConfigError where the channels are not those of the data set.
    """
    mean, std = config.model.teacher_mean, config.model.teacher_std
    if not mean:
        return loaded
    if len(mean) != spec.channels:
        raise ConfigError(
            f"model.teacher_mean has {len(mean)} numbers, the images of {spec.name} have "
            f"{spec.channels} channels"
        )
    factor_C11 = _by_channel(spec.std) / _by_channel(std)
    shift_C11 = (_by_channel(spec.mean) - _by_channel(mean)) / _by_channel(std)
    loaded.model.register_forward_pre_hook(partial(_rescale, factor_C11, shift_C11))
    return loaded


def _by_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def _rescale(factor: Tensor, shift: Tensor, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0] * factor.to(args[0]) + shift.to(args[0]), *args[1:]
