"""Networks from elsewhere: a function of the user's builds one, and files or data sets feed it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli import recipe
from tser_cli.config import Config
from tser_cli.data.loaders import build_eval_loader
from tser_cli.engine.runs.own_modules import build_network, error_line, load_weights
from tser_cli.engine.runtime.context import Context, prepare
from tser_cli.engine.runtime.processes import make_runtime
from tser_cli.errors import ConfigError, DataError
from tser_cli.report.progress import Progress, Silent

RANDOM_IMAGES = 8
Batches = Callable[[], Iterator[tuple[Tensor, Tensor | None]]]


@dataclass(frozen=True)
class NetworkRequest:
    """Which network, and what it is fed with: `dataset`, `data` (a .npy file) or `input_shape`.

    `network`: MODULE:FUNCTION, found from the current folder; `arguments`: key=value each. `images`
    0: all. `timesteps` 0: as many as the network makes. `changes`: settings by dotted key.
    """

    network: str
    arguments: tuple[str, ...] = ()
    weights: Path | None = None
    dataset: str = ""
    data: Path | None = None
    input_shape: str = ""
    images: int = 0
    batch_size: int = 32
    timesteps: int = 0
    layout: str = "auto"
    changes: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class Inputs:
    """Batches of images [N, ...] and labels, where there are some, and what they are called."""

    batches: Batches
    name: str

    def first(self) -> tuple[Tensor, Tensor | None]:
        """Return the first batch. Raises DataError where there is none."""
        for batch in self.batches():
            return batch
        raise DataError(f"{self.name} holds no images")

    def some(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Up to `count` images in one batch. Raises DataError where there are none."""
        images, labels, left = [], [], count
        for batch, labels_N in self.batches():
            images.append(batch[:left])
            labels += [] if labels_N is None else [labels_N[:left]]
            left -= len(images[-1])
            if left <= 0:
                break
        if not images:
            raise DataError(f"{self.name} holds no images")
        return torch.cat(images), torch.cat(labels).to(images[0].device) if labels else None


def open_network(request: NetworkRequest) -> tuple[nn.Module, Inputs]:
    """Build the network on the device, with its weights, and open what it is fed with.

    Raises ConfigError, CheckpointError or DataError with what is wrong.
    """
    network = build_network(request.network, request.arguments)
    if request.weights is not None:
        load_weights(network, request.weights)
    layers = [recipe.Layer("flags", {k: v for k, v in request.changes.items() if v is not None})]
    config = recipe.resolve(layers)
    if request.dataset:
        return network.eval(), _from_dataset(request, network, config)
    runtime = make_runtime(config.training, channels_last=False)
    images = _images(request)
    images = images[: request.images or len(images)].to(runtime.device)
    network.eval().to(runtime.device)
    parts = torch.split(images, request.batch_size)
    name = str(request.data) if request.data else f"random numbers of {request.input_shape}"
    return network, Inputs(lambda: ((part, None) for part in parts), name)


def _images(request: NetworkRequest) -> Tensor:
    if request.data is None:
        return _random(request)
    import numpy as np

    try:
        array = np.load(request.data, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"--data {request.data} can't be read: {error_line(error)}") from error
    if array.dtype.kind not in "fiub" or array.ndim < 2 or not len(array):
        raise DataError(
            f"--data {request.data} holds {array.dtype} {array.shape}, not numbers [N, ...]"
        )
    return torch.from_numpy(array.astype(np.float32))


def _random(request: NetworkRequest) -> Tensor:
    if not request.input_shape:
        raise ConfigError("say what the network is fed with: --dataset, --data or --input 3,32,32")
    try:
        shape = [int(part) for part in request.input_shape.split(",")]
    except ValueError as error:
        raise ConfigError(f'--input "{request.input_shape}": write 3,32,32') from error
    if not shape or min(shape) < 1:
        raise ConfigError(f'--input "{request.input_shape}": sizes are at least 1')
    generator = torch.Generator().manual_seed(0)
    return torch.rand(request.images or RANDOM_IMAGES, *shape, generator=generator)


def _from_dataset(request: NetworkRequest, network: nn.Module, config: Config) -> Inputs:
    context = prepare(config, request.progress)
    network.to(context.runtime.device)
    return test_images(context, request.images)


def test_images(context: Context, images: int) -> Inputs:
    """Return the test images of a data set, evenly spread where not all are wanted (0: all)."""
    loader = build_eval_loader(context.dataset, "test", context.config)
    wanted = min(images or loader.images, loader.images)
    chosen = set((torch.arange(wanted) * loader.images // wanted).tolist())

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in loader:
            taken = torch.tensor([int(i) in chosen for i in batch.indices_N])
            if taken.any():
                shown = batch.images_NCHW[taken].contiguous().to(context.runtime.device)
                yield shown, batch.labels_N[taken]

    return Inputs(batches, context.config.data.name)
