"""The four ways in which a network is given T time steps, and runs of it on a copy.

- time-first: called once with [T, N, ...]
- folded: called once with [T * N, ...], time outermost
- stepwise: called T times with [N, ...], its neurons keeping their state
- inside: called once with [N, ...]; it makes its own steps
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError, error_line, out_of_memory
from tser_cli.energy.counter import first_tensor
from tser_cli.energy.neurons import copied, reset_states

TIME_FIRST, FOLDED, STEPWISE, INSIDE = "time-first", "folded", "stepwise", "inside"
LAYOUTS = (TIME_FIRST, FOLDED, STEPWISE, INSIDE)
AUTO = "auto"
TIME_ARGUMENTS = (
    *("timesteps", "time_steps", "num_timesteps", "num_time_steps", "n_timesteps", "n_time_steps"),
    *("T", "num_steps", "n_steps", "nsteps", "nb_steps", "time_step", "timestep", "steps"),
    "time_window",
)
"""What networks call the argument of `forward` that says T."""
STATE_ARGUMENT = re.compile(
    r".*(state|mem|hid|syn|carry|cell|potential|recurrent).*|(h|c|s|u|v|hx|cx|hc|prev|previous)\d*",
    re.IGNORECASE,
)


class UnrunnableError(TserError):
    """The network fails when it is called so, which says nothing of another layout."""


class MisfitError(UnrunnableError):
    """A layer takes `wanted` features, or channels of the images, and is fed with others."""

    def __init__(self, message: str, wanted: int, channels: bool) -> None:
        super().__init__(message)
        self.wanted, self.channels = wanted, channels


@dataclass(frozen=True)
class Presentation:
    """A batch as a layout presents it: `x_TN` has T in front, but "inside" [N, ...].

    `args` and `kwargs`: what else the network is called with; `keyword`: what the input is passed
    as, None for the first argument. `frames`: each step has an input of its own, so that with
    "inside" the samples are [N, T, ...].
    """

    layout: str
    x_TN: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    keyword: str | None = None
    frames: bool = False

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
        """Call `network` as the layout says; its outputs, call by call.

        A state that comes out beside the output goes in again at the next step. Raises TserError
        where it is unclear what goes in again.
        """
        outputs: list[Any] = []
        for step, x in enumerate(self.inputs()):
            if before:
                before(step)
            args, kwargs = self.args, self.kwargs
            if step:
                parameters = list(inspect.signature(network.forward).parameters)
                named = dict(zip(parameters[1:], args, strict=False))
                state = handed_on(network, outputs[-1], {**kwargs, **named}, self.keyword)
                if state:
                    args, kwargs = (), {**kwargs, **named, **state}
            if self.keyword is None:
                outputs.append(network(x, *args, **kwargs))
            else:
                outputs.append(network(**{self.keyword: x}, **kwargs))
        return outputs


def handed_on(
    network: nn.Module, output: Any, given: dict[str, Any], keyword: str | None = None
) -> dict[str, Any]:
    """Return the arguments that hand the state beside an output on to the next step.

    That is of `forward(x, mem=None) -> (out, mem)`, as norse's networks have it too. `given`: what
    else was passed at the first step. Raises TserError where it can't be told what is a state.
    """
    first, *parameters = inspect.signature(network.forward).parameters.values()
    others = [one for one in parameters if one.name != keyword]
    if keyword is not None and first.name != keyword:
        others = [first, *others]
    open_ = [
        one.name
        for one in others
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        and (one.default is None or one.default is one.empty or isinstance(one.default, Tensor))
        and (given.get(one.name) is None or STATE_ARGUMENT.fullmatch(one.name))
    ]
    if not open_ or isinstance(output, Tensor):
        return {}
    rest = list(output[1:]) if isinstance(output, list | tuple) else [output]
    if first_tensor(rest) is None:
        return {}
    states = [name for name in open_ if STATE_ARGUMENT.fullmatch(name)]
    if len(states) != len(rest) and len(rest) == 1 and isinstance(rest[0], list | tuple):
        rest = list(rest[0])
    if len(states) == len(rest) and isinstance(output, list | tuple):
        return dict(zip(states, rest, strict=True))
    raise TserError(
        f"the network takes {', '.join(open_)} beside its input, and it is not clear which of its "
        "further outputs is the state for the next step: call it "
        "forward(x, state=None) -> (out, state), or make the steps in the network"
    )


def told_timesteps(network: nn.Module, layout: str) -> str:
    """Return the argument of `forward` that says T, "" where it has none or the layout needs none.

    One that is a fraction or a switch by default means something else.
    """
    parameters = inspect.signature(network.forward).parameters
    for name in TIME_ARGUMENTS:
        one = parameters.get(name)
        if one is None or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY):
            continue
        whole = one.default in (None, one.empty) or type(one.default) is int
        needed = layout == INSIDE or (one.default is one.empty and layout != STEPWISE)
        if whole and needed and one.annotation not in (float, bool, "float", "bool"):
            return name
    return ""


def unwrapped(network: nn.Module) -> nn.Module:
    """Return what a compiled, parallel or averaged network wraps, which computes the same."""
    averaged = torch.optim.swa_utils.AveragedModel
    while True:
        inner: nn.Module = getattr(network, "_orig_mod", network)
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel | averaged):
            inner = network.module
        if inner is network:
            return network
        network = inner


def present(
    layout: str, images: Tensor, timesteps: int, network: nn.Module, frames: bool = False
) -> Presentation:
    """Images [N, ...] shown at each of T steps (0: not said), as `layout` presents them.

    `frames`: they are samples [N, T, ...], which have an input for each step. A network
    whose `forward` asks for T is told it.
    """
    told = told_timesteps(network, layout) if timesteps else ""
    x = images
    if layout != INSIDE:
        x = images.movedim(1, 0) if frames else images.expand(timesteps or 1, *images.shape)
    return Presentation(layout, x, kwargs={told: timesteps} if told else {}, frames=frames)


def fresh_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode without state, to try things on. Raises TserError."""
    try:
        made = copied(network).eval()
    except Exception as error:
        raise TserError(
            "the network can't be copied, to find out what is time in it: "
            f"{error_line(error)}; reset its states, and count under torch.no_grad()"
        ) from error
    reset_states(made)
    return made


class Chance:
    """Whether the code inside `seeded` drew random numbers, once it has ended."""

    drew = False


@contextmanager
def seeded(seed: int) -> Iterator[Chance]:
    """Draw from this seed inside; afterwards random numbers go on as if nothing had been drawn."""
    chance, before, numpy_before = Chance(), random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []

    def drawn() -> tuple[Any, ...]:
        cuda = [torch.cuda.get_rng_state(device).tolist() for device in devices]
        found: Any = np.random.get_state()
        return torch.get_rng_state().tolist(), cuda, random.getstate(), found[1].tolist(), found[2]

    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: without a GPU it notes the whole stack, which takes longer than a
        # small network's run.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        start = drawn()
        try:
            yield chance
            chance.drew = drawn() != start
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)


def try_out(
    network: nn.Module,
    presentation: Presentation,
    before: Callable[[int], None] | None = None,
    chance: Chance | None = None,
) -> list[Any]:
    """Call a network without gradients; random numbers are drawn as if it had not run.

    `chance` notes whether it draws any. Raises TserError with the network's own error where it
    fails.
    """
    # Not in inference mode: what the network keeps from here could not be used outside of it.
    # Trial runs are compared with each other: dropout or noise must be the same in all.
    with torch.inference_mode(False), torch.no_grad(), seeded(0) as drawn:
        # A copy of the input, too: a first layer in place would change the user's images.
        owned = replace(presentation, x_TN=presentation.x_TN.clone())
        try:
            outputs = owned.call(network, before)
        except TserError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            shape, said = tuple(presentation.inputs()[0].shape), error_line(error)
            raise UnrunnableError(
                f"the network fails on an input of {shape} ({presentation.layout}): {said}"
            ) from error
    if chance is not None:
        chance.drew = chance.drew or drawn.drew
    return outputs
