"""The four ways in which a network is given T time steps, and runs of it on a copy.

- time-first: called once with [T, N, ...]
- folded: called once with [T * N, ...], time outermost
- stepwise: called T times with [N, ...], its neurons keeping their state
- inside: called once with [N, ...]; it makes its own steps
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError
from tser_cli.energy.neurons import reset_states

TIME_FIRST, FOLDED, STEPWISE, INSIDE = "time-first", "folded", "stepwise", "inside"
LAYOUTS = (TIME_FIRST, FOLDED, STEPWISE, INSIDE)
AUTO = "auto"


@dataclass(frozen=True)
class Presentation:
    """A batch as a layout presents it: `x_TN` has T in front, but "inside" [N, ...].

    `args` and `kwargs`: what else the network is called with; `keyword`: what the input is passed
    as, None for the first argument.
    """

    layout: str
    x_TN: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    keyword: str | None = None

    def inputs(self) -> list[Tensor]:
        """Return what the network is called with, call by call."""
        if self.layout == FOLDED:
            return [self.x_TN.flatten(0, 1)]
        return list(self.x_TN) if self.layout == STEPWISE else [self.x_TN]

    @property
    def images_axis(self) -> int:
        """Return the axis of `x_TN` with the images."""
        return 0 if self.layout == INSIDE else 1

    def of(self, images: int, more_steps: int = 0) -> Presentation:
        """Return the same with so many images, the first ones over and over, and more steps."""
        axis = self.images_axis
        index = torch.arange(images, device=self.x_TN.device) % self.x_TN.shape[axis]
        x = self.x_TN.index_select(axis, index)
        if more_steps:
            x = torch.cat([x, *[x[-1:]] * more_steps])
        return replace(self, x_TN=x)

    def call(self, network: nn.Module, before: Callable[[int], None] | None = None) -> list[Any]:
        """Call `network` as the layout says; its outputs, call by call."""
        outputs = []
        for step, x in enumerate(self.inputs()):
            if before:
                before(step)
            if self.keyword is None:
                outputs.append(network(x, *self.args, **self.kwargs))
            else:
                outputs.append(network(**{self.keyword: x}, **self.kwargs))
        return outputs


def present(
    layout: str, images: Tensor, timesteps: int, extra: tuple[tuple[Any, ...], dict[str, Any]]
) -> Presentation:
    """Images [N, ...] shown at each of T steps, as `layout` presents them."""
    x = images if layout == INSIDE else images.expand(timesteps, *images.shape)
    return Presentation(layout, x, *extra)


def fresh_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode without state, to try things on. Raises TserError."""
    # torch does not copy a tensor that has a gradient's history, as a potential after a pass does.
    values = [value for module in network.modules() for value in vars(module).values()]
    states = [x for x in values if isinstance(x, Tensor) and not x.is_leaf]
    try:
        made = copy.deepcopy(network, {id(x): x.detach().clone() for x in states}).eval()
    except Exception as error:
        raise TserError(
            f"the network can't be copied, to find out what is time in it: {_line(error)}; reset "
            "its states, and count under torch.no_grad()"
        ) from error
    reset_states(made)
    return made


def try_out(
    network: nn.Module,
    presentation: Presentation,
    before: Callable[[int], None] | None = None,
) -> list[Any]:
    """Call a network without gradients; random numbers are drawn as if it had not run.

    Raises TserError with the network's own error where it fails.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    # Not in inference mode: what the network keeps from here could not be used outside of it.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=devices):
        # Trial runs are compared with each other: dropout or noise must be the same in all.
        torch.manual_seed(0)
        # A copy of the input, too: a first layer in place would change the user's images.
        owned = replace(presentation, x_TN=presentation.x_TN.clone())
        try:
            return owned.call(network, before)
        except TserError:
            raise
        except Exception as error:
            shape = tuple(presentation.inputs()[0].shape)
            raise TserError(
                f"the network fails on an input of {shape} ({presentation.layout}): {_line(error)}"
            ) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
