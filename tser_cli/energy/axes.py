"""Which axis of a tensor is time and which is the batch, learned by changing T and N.

A network is run on 2 images, on 3, and where its input has a time axis for T + 1 steps: an axis
that grows with N holds the images, one that grows with T the steps, one that grows with both has
time folded into the batch. So T = N, heads = T or tokens = N mislead nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tser_cli.errors import TserError

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
