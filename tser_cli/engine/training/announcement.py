"""The line before a training: what will happen."""

from __future__ import annotations

from typing import Protocol

from tser_cli.config import Config, method_label


class Sized(Protocol):
    """What a loader of training images says of its size."""

    @property
    def images(self) -> int:
        """Images of an epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""


def announcement(config: Config, spiking: bool, loader: Sized) -> str:
    """Return what is trained, by what, for how long, and how to stop."""
    model, training = config.model, config.training
    what = f"{model.teacher}, an ANN to teach from"
    if spiking:
        steps = f"{model.timesteps} time step{'s' if model.timesteps > 1 else ''}"
        what = f"{model.student}, spiking, with {steps}, by {method_label(config)}"
    return (
        f"training {what}: {training.epochs} epochs of {loader.steps_per_epoch:,} steps on "
        f"{loader.images:,} images of {config.data.name}, then a test on images kept apart. "
        "Ctrl-C stops it, and the same command goes on"
    )
