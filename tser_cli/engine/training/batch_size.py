"""`--batch-size auto`: the largest batch that fits into memory, from what two small ones keep."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from torch import Tensor

from tser_cli.engine.runtime.context import Context
from tser_cli.engine.training.task import Task
from tser_cli.errors import ConfigError
from tser_cli.models.savings import keeping

# Of the free memory; and what backward needs beside the kept tensors: the gradients of the layers
# that it is at, and workspaces.
SHARE, TRANSIENT = 0.8, 1.5
SMALL, LARGE = 4, 8
# gradient and momentum, beside weights that are there already; AdamW keeps one more
STATE = {"sgd": 2, "adamw": 3}


def largest_batch(task: Task, context: Context) -> int:
    """Return the largest power of two of images a process and part of a batch that fits, over all
    of them.

    At most the training images. Raises ConfigError where not even one image a process fits.
    """
    runtime, training = context.runtime, context.config.training
    network = runtime.place(task.network)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    free = free_bytes(runtime.device) / _processes_here(runtime.world, runtime.device)
    free -= STATE[context.config.optimizer.name] * weights
    one = TRANSIENT * bytes_an_image(task, context)
    share = runtime.world * training.accumulate
    fitting = -runtime.largest(-images_that_fit(free, one))
    # every process, and every part of a batch, gets as many images as the others
    size = share * power_of_two(min(fitting, len(context.dataset.train) // share))
    if not size:
        raise ConfigError(
            f"not even one image fits into the memory of {runtime.device} ({free / 1e9:.1f} GB "
            "free); try performance.save_memory, or a smaller network"
        )
    return size


def bytes_an_image(task: Task, context: Context) -> float:
    """Return what each image of a batch adds to the memory that a training step holds at once."""

    def slope() -> float:
        small, large = (kept_bytes(task, context, images) for images in (SMALL, LARGE))
        return (large - small) / (LARGE - SMALL)

    if not task.model.save_memory:
        return slope()
    kept = slope()
    # and the part that backward computes again: the largest of our networks' is below a half
    task.model.save_memory = False
    plain = slope()
    task.model.save_memory = True
    return kept + plain / 2


def images_that_fit(free: float, one: float) -> int:
    """Return how many images of `one` byte each fit into a share of `free` bytes."""
    return max(int(SHARE * free / one), 0)


def power_of_two(count: int) -> int:
    """Return the largest power of two up to `count`; 0 for none."""
    return 1 << (count.bit_length() - 1) if count > 0 else 0


def kept_bytes(task: Task, context: Context, images: int) -> int:
    """Bytes that a training step on `images` keeps for backward; the network stays as it was."""
    runtime, spec = context.runtime, context.dataset.spec
    images_NCHW = runtime.images(torch.zeros(images, *spec.image_shape))
    labels_N = torch.zeros(images, dtype=torch.int64, device=runtime.device)
    sizes: dict[int, int] = {}
    before = {name: value.clone() for name, value in task.network.state_dict().items()}

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()

    task.network.train()
    with keeping(context.config.performance, note), runtime.autocast():
        result = task.step(images_NCHW, labels_N, torch.zeros(images, dtype=torch.int64))
    total = sum(sizes.values())
    del result
    task.network.load_state_dict(before)
    return total


def _processes_here(world: int, device: torch.device) -> int:
    # a GPU each; a CPU machine's memory is shared
    return world if device.type == "cpu" else 1


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; of a CPU what the machine, or the container's limit, leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (
        _number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current")
    )
    return free if limit is None or used is None else min(free, limit - used)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no cgroup of version 2, or "max"
        return None
