"""Where images are kept: on the training device if they take little of its memory."""

from __future__ import annotations

import torch

from tser_cli.data.base import ImageSource, TensorSource

CPU = torch.device("cpu")
# of the free memory: the rest is for the networks, whose need is not known yet
LARGEST_SHARE = 1 / 4


def fits(needed: int, free: int) -> bool:
    """Return whether `needed` bytes may be kept on a device with `free` bytes."""
    return needed <= LARGEST_SHARE * free


def placed(source: ImageSource, device: torch.device) -> ImageSource:
    """Return the same images and labels on a CUDA `device`, if they are in memory and fit there.

    Else, and for a device of any other kind, `source` as it is.
    """
    if device.type != "cuda" or not isinstance(source, TensorSource):
        return source
    free, _ = torch.cuda.mem_get_info(device)
    if not fits(source.images_MCHW.nbytes, free):
        return source
    return TensorSource(source.images_MCHW.to(device), source.labels.to(device))


def device_of(source: ImageSource) -> torch.device:
    """Return where the images lie; those that are read from files come on the CPU."""
    return source.images_MCHW.device if isinstance(source, TensorSource) else CPU


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on `device`, without waiting for what the device still has to do."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
