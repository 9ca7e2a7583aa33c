"""A module from elsewhere, with the face of our networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tser_cli.errors import ConfigError
from tser_cli.models.base import Classifier


class OwnNetwork(Classifier):
    """A user's module with the face of our networks.

    A spiking one is called as `module(images, timesteps)` and returns logits [T, N, K]; an ANN is
    called as `module(images)` and returns [N, K]. Methods that compare features need a method
    `stage_names()` of the module: the submodules that end its stages, whose outputs are
    [T * N, C, H, W] with time outermost. `input_kinds()` of the module is asked too.
    """

    def __init__(self, module: nn.Module, spiking: bool) -> None:
        super().__init__()
        self.module = module
        self.spiking = spiking

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        if not self.spiking:
            return self._checked(self.module(images_NCHW), 2, "[N, K]")
        logits_TNK = self._checked(self.module(images_NCHW, timesteps), 3, "[T, N, K]")
        if logits_TNK.shape[:2] != (timesteps, len(images_NCHW)):
            raise ConfigError(
                f"the student gave logits of shape {tuple(logits_TNK.shape)} for {timesteps} time "
                f"steps of {len(images_NCHW)} images; return [T, N, K], time outermost"
            )
        return logits_TNK

    def input_kinds(self) -> dict[str, str] | None:
        named = getattr(self.module, "input_kinds", None)
        return None if named is None else {f"module.{name}": of for name, of in named().items()}

    def stage_names(self) -> tuple[str, ...]:
        named = getattr(self.module, "stage_names", tuple)
        return tuple(f"module.{name}" for name in named())

    def _checked(self, logits: Any, dimensions: int, shape: str) -> Tensor:
        if not isinstance(logits, Tensor) or logits.dim() != dimensions:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            role = "student" if self.spiking else "teacher"
            raise ConfigError(f"the {role} gave {found}; it must return logits {shape}")
        return logits
