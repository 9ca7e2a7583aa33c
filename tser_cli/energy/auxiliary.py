"""What syops counts beside convolutions and linear layers: norms, pools, neurons, activations.

The rules are those of syops 0.0.5 (`syops/ops.py`), by the class of the module: an element of a
spike tensor costs its rate in accumulates, any other one a multiply-accumulate; a norm with weights
costs two an element; a leaky neuron one of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tser_cli.energy.counts import SPIKES
from tser_cli.energy.tally import find_kind
from tser_cli.energy.trace import first_tensor

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
AVERAGES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ACTIVATIONS = (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6, nn.GELU)
IF_NAMES, LIF_NAMES = ("IFNode", "MultiStepIFNode"), ("LIFNode", "MultiStepLIFNode")


@dataclass
class Auxiliary:
    """Accumulates and multiply-accumulates of all calls together."""

    acs: float = 0.0
    macs: float = 0.0

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Add what syops would for one call of a module; nothing for classes it does not know."""
        x, y = first_tensor(args), first_tensor(output)
        if x is None or y is None:
            return
        if isinstance(module, NORMS):
            affine = bool(getattr(module, "affine", True))
            self._by_kind(x, x.numel() * (2 if affine else 1))
        elif isinstance(module, AVERAGES):
            self.macs += x.numel()
        elif isinstance(module, MAXIMA):
            self._by_kind(x, x.numel())
        elif isinstance(module, ACTIVATIONS):
            self._by_kind(y, y.numel())
        elif type(module).__name__ in IF_NAMES + LIF_NAMES:
            self.acs += x.numel() * (_rate(x) if find_kind(x) in ("", SPIKES) else 1.0)
            self.macs += x.numel() if type(module).__name__ in LIF_NAMES else 0

    def _by_kind(self, x: Tensor, operations: int) -> None:
        if find_kind(x) in ("", SPIKES):
            self.acs += operations * _rate(x)
        else:
            self.macs += operations


def _rate(x: Tensor) -> float:
    return float(x.double().mean())
