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
from tser_cli.energy.any_network.neurons import reset_states

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
        """Return the same with that many images, the first ones over and over, and with more
        steps.
        """
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
    """Return a copy in eval mode without state, to try things on.

    Raises TserError where there is none.
    """
    try:
        made = copy.deepcopy(network, _states(network)).eval()
    except Exception as error:
        raise TserError(
            f"the network can't be copied, to find out what is time in it: {_line(error)}; reset "
            "its states, and count under torch.no_grad()"
        ) from error
    reset_states(made)
    return made


def _states(network: nn.Module) -> dict[int, Any]:
    """Copies of tensors with a gradient's history, which torch does not copy by itself."""
    values = [value for module in network.modules() for value in vars(module).values()]
    found = [x for x in values if isinstance(x, Tensor) and not x.is_leaf]
    return {id(x): x.detach().clone() for x in found}


def try_out(
    network: nn.Module,
    presentation: Presentation,
    before: Callable[[int], None] | None = None,
) -> list[Any]:
    """Call a network without gradients; random numbers are drawn as if it had not run.

    Raises TserError with the network's own error where it fails.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=_devices()):
        torch.manual_seed(0)
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


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Axes:
    """Where the steps and images of a tensor are.

    `batch`: the axis of the images. `time`: an axis of the steps of its own, None without one.
    `folded`: the batch axis holds the steps too, time outermost. `inner`: how many elements of the
    batch axis belong to one image and step (heads, for instance).
    """

    batch: int
    time: int | None = None
    folded: bool = False
    inner: int = 1

    @property
    def all_steps(self) -> bool:
        """Return whether one tensor holds all time steps."""
        return self.folded or self.time is not None

    def steps(self, shape: Shape, timesteps: int) -> int:
        """Return the steps that a tensor of this shape holds: T or 1."""
        return timesteps if self.all_steps else 1

    def images(self, shape: Shape, timesteps: int) -> int:
        """Return the number of images in a tensor of this shape."""
        per_image = self.inner * (timesteps if self.folded else 1)
        return shape[self.batch] // per_image

    def fits(self, shape: Shape, timesteps: int, images: int) -> bool:
        """Return whether a tensor of this shape holds that many images, and steps where it has
        them.
        """
        per_image = self.inner * (timesteps if self.folded else 1)
        if len(shape) <= max(self.batch, self.time or 0):
            return False
        right_time = self.time is None or shape[self.time] == timesteps
        return right_time and shape[self.batch] == per_image * images

    def rows(self, x: Tensor, timesteps: int) -> Tensor:
        """`x` with its steps and images in front, [steps * images, inner, ...]; no copy."""
        if self.time is not None:
            x = x.movedim((self.time, self.batch), (0, 1)).flatten(0, 1)
        elif self.batch:
            x = x.movedim(self.batch, 0)
        return x.reshape(-1, self.inner, *x.shape[1:]) if self.inner > 1 else x


def trial_images(timesteps: int) -> int:
    """Return the images of a trial run on T + 1 steps: 2, but 3 where T is 2.

    A network that folds time and knows T can't then divide its T + 1 steps by T, and says so.
    """
    return 3 if timesteps == 2 else 2


def changed(first: Shape, second: Shape, name: str) -> list[int]:
    """Return the axes at which two shapes differ.

    Raises TserError where they have not the same axes.
    """
    if len(first) != len(second):
        raise TserError(
            f"{name} met an input of {first} and, with another number of images or steps, one of "
            f"{second}: what is time and what are images can't be told"
        )
    return [axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]


def learn(name: str, two: Shape, three: Shape, longer: Shape | None, timesteps: int) -> Axes | None:
    """Return the axes of a tensor from its shapes with 2 images, 3 images, and at T + 1 steps.

    None where nothing of it grows with the images: a weight. `longer` is of `trial_images(T)`, and
    None where T can't be changed, so that `guess_time` has to decide. Raises TserError where no
    axis holds the images alone.
    """
    grown, base = changed(two, three, name), three if trial_images(timesteps) == 3 else two
    if not grown and (longer is None or not changed(base, longer, name)):
        return None
    if len(grown) != 1 or 3 * two[grown[0]] != 2 * three[grown[0]]:
        raise TserError(
            f"{name} met inputs of {two} for 2 images and {three} for 3: no axis of it holds the "
            "images alone, so that its operations can't be told apart by image"
        )
    batch, width = grown[0], two[grown[0]] // 2
    if longer is None:
        return Axes(batch, inner=width)
    stretched = changed(base, longer, name)
    if not stretched:
        return Axes(batch, inner=width)
    if stretched == [batch] and longer[batch] * timesteps == base[batch] * (timesteps + 1):
        return Axes(batch, folded=True, inner=width // timesteps)
    if len(stretched) == 1 and two[stretched[0]] == timesteps:
        return Axes(batch, time=stretched[0], inner=width)
    raise TserError(
        f"{name} met inputs of {two} for {timesteps} time steps and {longer} for "
        f"{timesteps + 1}: no axis of it holds the steps"
    )


def readings(axes: Axes, shape: Shape, calls: int, timesteps: int) -> tuple[bool, bool]:
    """Return how a layer's calls can be read where T can't be changed: (one a step, all steps in
    one).
    """
    folded, leading = axes.inner % timesteps == 0, axes.batch == 1 and shape[0] == timesteps
    return calls % timesteps == 0, folded or leading


def guess_time(
    name: str, axes: Axes, shape: Shape, calls: int, timesteps: int, loops: bool | None
) -> Axes:
    """Return the time axis of a tensor of a network that makes its own steps, whose T can't be
    changed.

    A call for each step has none. One call may have T in front of the images, or folded into them.
    `loops`: how those layers of the network run that can be read in one way alone, None where they
    disagree or there are none. Raises TserError where two readings are left.
    """
    if timesteps == 1:
        return axes
    looped, whole = readings(axes, shape, calls, timesteps)
    tokens = len(shape) > axes.batch + 2 and shape[axes.batch + 1] == timesteps
    if loops is None and ((looped and whole) or (not looped and not whole and tokens)):
        raise TserError(
            f"{name} ran {calls} times on {shape}, where {timesteps} may be time steps or not; "
            "this network can't be counted as it makes its own steps: give it T from outside"
        )
    if not whole or (looped and loops):
        return axes
    if axes.inner % timesteps:
        return Axes(axes.batch, time=0, inner=axes.inner)
    return Axes(axes.batch, folded=True, inner=axes.inner // timesteps)
