"""What a network of a plug-in must do, tried on two images before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from tser_cli.data.base import DataSpec
from tser_cli.engine.runs.input_kinds import counting_of
from tser_cli.errors import ConfigError, TserError
from tser_cli.models import Classifier
from tser_cli.models.savings import folded
from tser_cli.plugins import last_line

IMAGES = 2


def check_contract(name: str, model: Classifier, spec: DataSpec, timesteps: int) -> None:
    """Raise ConfigError unless `model` can be trained and counted on the images of `spec`.

    An SNN returns logits [T, N, K], an ANN [N, K]; the same again for the same images, so that
    nothing is left in its neurons; a gradient reaches its weights; its operations can be counted,
    and layers that it declares to be fed with spikes, or sums of them, are so by its structure.
    The model stays as it is, and no random numbers are drawn.
    """
    shown = f"network {name}, shown {IMAGES} images of {spec.channels} x {spec.height} x " + (
        f"{spec.width} for {timesteps} time steps" if model.spiking else f"{spec.width}"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tried = copy.deepcopy(model).cpu().eval()
        images_NCHW = torch.rand(IMAGES, *spec.image_shape)
        try:
            problem = _problem(tried, images_NCHW, timesteps, spec.num_classes)
            problem = problem or _norms_problem(tried, images_NCHW, timesteps)
            if not problem:
                _count(tried, images_NCHW, timesteps)
        except TserError as error:
            raise ConfigError(f"{shown}: {error}") from error
        except Exception as error:
            raise ConfigError(f"{shown}, fails: {last_line(error)}") from error
    if problem:
        raise ConfigError(f"{shown}, {problem}")


def _problem(model: Classifier, images_NCHW: Tensor, timesteps: int, classes: int) -> str:
    """Return in words what is wrong with the logits or their gradient; "" where nothing is."""
    logits, form = model(images_NCHW, timesteps), "[N, K]"
    expected: tuple[int, ...] = (len(images_NCHW), classes)
    if model.spiking:
        expected, form = (timesteps, *expected), "[T, N, K], time outermost"
    if not isinstance(logits, Tensor):
        return f"returns {type(logits).__name__}, not logits {form}"
    if tuple(logits.shape) != expected:
        return f"returns logits {tuple(logits.shape)}; they must be {form}, here {expected}"
    if not torch.equal(logits, model(images_NCHW, timesteps)):
        return "returns other logits the second time: reset its neurons when forward begins"
    if logits.requires_grad:
        logits.square().sum().backward()  # type: ignore[no-untyped-call]
    if all(weight.grad is None for weight in model.parameters()):
        return "has no gradient: nothing of it can be trained"
    return ""


@torch.no_grad()
def _norms_problem(model: Classifier, images_NCHW: Tensor, timesteps: int) -> str:
    """Return what is wrong with a network that says `norms_follow`; "" where nothing is.

    Its norms get statistics that are not those of a beginning, which change nothing wherever a norm
    is. In float64, so that rounding makes no spike.
    """
    if not model.norms_follow:
        return ""
    changed = copy.deepcopy(model).double()
    for norm in changed.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            nn.init.uniform_(cast(Tensor, norm.running_mean), -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.1, 2.0)
    images = images_NCHW.double()
    expected, found = (m(images, timesteps) for m in (changed, folded(changed)))
    if torch.allclose(expected, found, rtol=1e-6, atol=1e-6):
        return ""
    return "gives other logits once its norms are folded: norms_follow = True does not hold of it"


def _count(model: Classifier, images_NCHW: Tensor, timesteps: int) -> None:
    # Untrained neurons may be silent, and the mean of zeros is a spike's 0: random spikes show
    # what is made of spikes on the way to a layer, such as by a pool that averages.
    with (
        torch.inference_mode(),
        spiking_at_random(model),
        counting_of(model, timesteps) as counter,
    ):
        model(images_NCHW, timesteps)
    try:
        counter.counts()
    except TserError as error:
        raise TserError(f"with neurons that spike at random, {error}") from error


@contextmanager
def spiking_at_random(model: nn.Module) -> Iterator[None]:
    """Let every neuron of ours spike with probability 1/2 at each step, whatever its input."""
    with ExitStack() as stack:
        for module in model.modules():
            if getattr(module, "is_spiking_neuron", False):
                handle = module.register_forward_hook(_random_spikes)
                stack.callback(handle.remove)
        yield


def _random_spikes(module: nn.Module, args: tuple[Any, ...], spikes: Tensor) -> Tensor:
    return torch.bernoulli(torch.full_like(spikes, 0.5))
